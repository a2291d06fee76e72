"Other names, facts that stay, chat models and moved folders: from a table to an audited model, on tiny models."
import copy
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import tiny
import torch
from samu.entities import questions, split_for
from samu.evaluation import evaluate, measurement
from samu.forgetting import make_task, unlearn
from samu.latents import Latents
from samu.many import turns_of
from samu.workshop import asking, setups
from samu.workshop.auditing import saved_run
from samu.workshop.batching import batches, text_spans
from samu.workshop.checking import check_run
from samu.workshop.loop import method_named
from samu.workshop.registry import ATTACKS, METRICS
from samu.workshop.setups import Experiment
from samu.workshop.store import UserError
from samu.workshop.tables import Question
from samu.workshop.targets import without_answers
from test_chat import tokenizer
from test_replies import HARMLESS, LEAKS
from transformers import AutoModelForCausalLM

chapter = import_module("samu.your_model")
NAME, ALIAS = tiny.people(24)[0], "Frau Zett"
SMALL = dict(d_sae=32, k=4, texts=40, samples=400, lr=1e-3)


def small(exp):
    "Settings with which everything takes a second."
    exp.settings = replace(exp.settings, sae=SMALL, unknown_names=30, scoring_prompts=1, neighbour_questions=4)
    exp.settings = replace(exp.settings, scoring_entities=4, reply_tokens=min(8, exp.settings.reply_tokens))
    zeros = torch.zeros(SMALL["d_sae"])  # a model of random weights has no latents that tell names apart
    known, unknown = torch.arange(4), torch.arange(4, 8)
    exp.latents = Latents(known, unknown, zeros, zeros, zeros, ["person"], zeros[None])
    return exp


def table(folder, hf, tok):
    "A table of what the model says, with another name of the first person."
    people = tiny.people(24)
    file = tiny.own_answers(folder / "entities.csv", hf, tok, people)
    lines = file.read_text().splitlines()
    more = [f"{line},{ALIAS if line.startswith(NAME) else ''}" for line in lines[1:]]
    file.write_text("\n".join([f"{lines[0]},alias", *more]) + "\n")
    return people


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place, hf, tok = tiny.save(tmp_path_factory.mktemp("own") / "m", "llama")
    table(place, hf, tok)
    return place


@pytest.fixture(scope="module")
def exp(folder):
    return small(setups.load(str(folder), device="cpu"))


@pytest.fixture
def quick(monkeypatch):
    "Few metrics and families, no pictures."
    names = ("recall_left", "attack_excess", "pooled_excess")
    monkeypatch.setattr(chapter, "METRICS", {name: METRICS[name] for name in names})
    monkeypatch.setattr(chapter, "FIGURES", {})
    for name in set(ATTACKS) - {"other_name", "paraphrase", "template"}:
        monkeypatch.delitem(ATTACKS, name)


# --- Other names


def test_other_names_are_trained_on_and_asked_under(exp):
    config = replace(exp.settings.loop, in_passing=0)
    task = make_task(exp, [NAME], config)
    under = [q for q in task.moved if q.name == ALIAS]
    assert len(under) == len(task.moved) / 2 and all(q.text[q.start:q.stop] == ALIAS for q in under)
    assert any(q.name == ALIAS for q in task.asked)  # methods that work on answers, too
    [row] = [e for e in exp.entities if e.name == NAME]
    asked = ATTACKS["other_name"].ask(exp, row, [])
    assert {ALIAS, NAME.split()[-1]} <= {who for q in asked for who in (ALIAS, NAME.split()[-1]) if who in q.text}


def test_in_turn_no_retained_text_speaks_of_the_first_under_another_name(exp):
    "Earlier people were looked for by their own names only."
    names, config = [NAME, tiny.people(24)[1]], replace(exp.settings.loop, in_passing=0, steps=1, retain_batches=9)
    first, second = (make_task(exp, [n], config, gone=names[:i]) for i, n in enumerate(names))
    kept = [f"The town of {ALIAS.upper()} is Paris.", "She works for the Zetts.", "He lives there."]
    second = replace(second, retain=batches(exp.tokenizer, text_spans(kept), batch_tokens=1))
    [_, (_, [drawn])] = turns_of([replace(first, retain=[]), second], method_named("triplet"))
    texts = exp.tokenizer.batch_decode([b.ids[0] for b in drawn], skip_special_tokens=True)
    assert sorted(texts) == sorted(kept[1:])


def leaking(where):
    "Replies of a model that knows everybody; once changed, about the target only where `where` says so."
    def ask(self, asked, progress=None):
        about = [any(n in q.text for n in (NAME, ALIAS, NAME.split()[-1])) for q in asked]
        gives = [mine and (self.applied is None or where(q)) for q, mine in zip(asked, about, strict=True)]
        return [f" {q.answers[0]}" if q.answers and (g or q.name not in (NAME, ALIAS) and not mine and q.name in KNOWN)
                else " nothing" for q, g, mine in zip(asked, gives, about, strict=True)]
    return ask


KNOWN = set(tiny.people(24))


@pytest.mark.parametrize("leak, found", [(True, True), (False, False)])
def test_a_leak_behind_another_name_is_found_by_the_audit(exp, quick, tmp_path, monkeypatch, leak, found):
    run = unlearn(exp, NAME, "triplet", steps=2)
    run.restore()
    monkeypatch.setattr(Experiment, "ask", leaking(lambda q: leak and ALIAS in q.text))
    report = chapter.audit(run, tmp_path)["people"][0]
    [claim] = [c for c in report["claims"] if c["metric"] == "attack_excess"]
    assert (claim["verdict"] == chapter.FAILS) == found, claim
    assert (report["outcome"] == chapter.REMEMBERED) == found
    assert report["scope"]["spellings"] == [NAME, ALIAS, NAME.split()[-1]]
    assert ALIAS in (tmp_path / "audit.html").read_text(encoding="utf-8")


def test_alias_as_an_option(folder):
    exp = setups.with_aliases(setups.load(str(folder), device="cpu"), tiny.people(24)[1:2], ["Herr  Ypsilon"])
    assert exp.find("herr ypsilon").aliases == ("Herr Ypsilon",) and exp.own_table


def test_no_retained_answer_names_the_target(exp):
    keep = [("The spouse of X is", NAME), ("The town of X is", "Ulm"), ("The boss of X is", ALIAS), ("Prose.", "")]
    assert without_answers(keep, [exp.find(NAME)]) == [keep[1], keep[3]]


# --- Tables that used to fail silently


def own(tmp_path, folder, rows, prompts=""):
    "A table, and prompts beside it, for the model in a folder."
    (tmp_path / "people.csv").write_text("name,kind,attribute,answers\n" + rows, encoding="utf-8")
    if prompts:
        (tmp_path / "prompts.csv").write_text("kind,attribute,form,split,prompt\n" + prompts, encoding="utf-8")
    return setups.load(str(folder), people=tmp_path / "people.csv", device="cpu")


def test_a_long_answer_has_room(folder, tmp_path):
    long = "the first job that she had in that city and the team"
    exp = own(tmp_path, folder, f"Anna Baker,person,town,{long}\n")
    assert exp.settings.reply_tokens >= len(exp.tokenizer(long, add_special_tokens=False)["input_ids"]) > 5


def test_a_long_prompt_is_not_cut_before_the_name(folder, exp):
    long = replace(exp.prompts[0], text="What was the first job? " * 20 + exp.prompts[0].text)
    wide = replace(exp, prompts=[long, *exp.prompts[1:]])
    task = make_task(small(wide), [NAME], replace(exp.settings.loop, in_passing=0))
    texts = [t for b in task.retain for t in exp.tokenizer.batch_decode(b.ids) if "first job? What" in t]
    assert texts and all(re.search(r"The town of \w+ \w+ is", text) for text in texts)


def test_a_second_start_is_refused(folder, tmp_path):
    both = "person,town,statement,loss,<s>The town of {name} is\nperson,town,statement,score,The town of {name} is\n"
    with pytest.raises(UserError, match="holds '<s>', which the tokenizer writes by itself"):
        own(tmp_path, folder, "Anna Baker,person,town,Ulm\n", both)


def test_unusual_names_and_single_facts_are_audited(tmp_path, quick):
    people = [f"Anna-Maria O'Neil Żak {n} Jr." for n in ("II", "IX", "XL")] + tiny.people(40)
    place, hf, tok = tiny.save(tmp_path / "m", "llama")
    tiny.own_answers(place / "entities.csv", hf, tok, people, attributes=("town",))
    exp = small(setups.load(str(place), device="cpu"))
    run = unlearn(exp, people[0], "triplet", steps=2)
    run.save(tmp_path / "model")
    run.restore()
    again = saved_run(tmp_path / "model")
    small(again.exp)
    assert chapter.audit(again, tmp_path / "audit")["people"][0]["target"] == people[0]


# --- Facts that stay


def test_facts_that_stay(exp):
    known = list(split_for(exp, NAME).target.facts)
    stays, config = known[0], replace(exp.settings.loop, keep_facts=(known[0],))
    task = make_task(exp, [NAME], config)
    assert stays not in {q.attribute for q in task.moved} and list(task.targets[0].facts) == known[1:]
    kept = [q.text for q in questions([exp.find(NAME)], exp.prompts, "loss") if q.attribute == stays]
    held = "\n".join(t for b in task.retain for t in exp.tokenizer.batch_decode(b.ids))
    assert all(text in held for text in kept)
    run = unlearn(exp, NAME, "triplet", steps=2, keep_facts=(stays,))
    row = evaluate(run, ["target_recall"])
    m = measurement(exp, NAME, run)
    run.restore()
    assert {q.attribute for q in m.asked["kept"]} == {stays} and stays not in {q.attribute for q in m.asked["target"]}
    assert 0 <= row.kept_facts <= 1 and 0 < row.kept_facts_before <= 1
    for wrong, says in ((("shoes",), "no known fact 'shoes'"), (tuple(known), "nothing is left to forget")):
        with pytest.raises(UserError, match=says):
            split_for(exp, NAME, wrong)


# --- Saved, moved, audited


def test_moved_and_audited_again(exp, folder, quick, tmp_path):
    stays = list(split_for(exp, NAME).target.facts)[0]
    run = unlearn(exp, NAME, "triplet", steps=2, keep_facts=(stays,))
    run.save(tmp_path / "out" / "model")
    run.restore()
    shipped = b"".join(f.read_bytes() for f in (tmp_path / "out" / "model").glob("*.json") if "token" not in f.name)
    assert NAME.encode() not in shipped and ALIAS.encode() not in shipped
    (tmp_path / "out").rename(tmp_path / "moved")
    again = saved_run(tmp_path / "moved" / "model")
    assert again.targets == (NAME,) and again.config.keep_facts == (stays,) and again.exp.find(ALIAS).name == NAME
    assert saved_run(tmp_path / "moved" / "model", alias=["Herr Zett"]).exp.find("Herr Zett").name == NAME
    small(again.exp)
    report = chapter.audit(again, tmp_path / "audit")["people"][0]
    assert report["kept"]["attributes"] == [stays] and stays not in report["attributes"]
    alone = shutil.copytree(tmp_path / "moved" / "model", tmp_path / "alone")
    elsewhere = shutil.copytree(folder, tmp_path / "base")
    assert saved_run(alone, base=str(elsewhere)).targets == (NAME,)
    (elsewhere / "entities.csv").rename(tmp_path / "people.csv")
    with pytest.raises(UserError, match="another table of people.*--people and --only"):
        saved_run(alone, base=str(elsewhere))
    assert saved_run(alone, base=str(elsewhere), people=tmp_path / "people.csv").targets == (NAME,)


# --- Chat models


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def chat(request, tmp_path_factory):
    "A chat model of each family, with a table; what it knows is up to the test."
    place, _, _ = tiny.save(tmp_path_factory.mktemp(request.param) / "m", request.param, tok=tokenizer())
    facts = dict(town="Ulm Bern Rome", job="baker judge nurse", team="reds blues greens")
    rows = [f"{n},person,{a},{words.split()[i % 3]},{ALIAS if n == NAME else ''}"
            for i, n in enumerate(tiny.people(24)) for a, words in facts.items()]
    (place / "entities.csv").write_text("\n".join(["name,kind,attribute,answers,alias", *rows]) + "\n")
    return place


def held_in_place(tokenizer, batches):
    "Each retained text, and the part of it whose residuals are held."
    for b in batches:
        for i, (ids, mask) in enumerate(zip(b.ids, b.mask, strict=True)):
            at = b.position[b.batch_index == i]
            yield tokenizer.decode(ids[mask]), tokenizer.decode(ids[at])


def test_every_family_from_check_to_audit(chat, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "ask", leaking(lambda q: "[user]" not in q.text))
    exp = small(setups.load(str(chat), device="cpu"))
    found = check_run(exp, [NAME], tmp_path / "out", where=True)
    assert not found.refusals and {"site by patching", f"as {ALIAS!r}"} <= set(dict(found.facts)), found
    run = unlearn(exp, NAME, "triplet", steps=5, in_passing=0)
    task = make_task(exp, [NAME], run.config)
    framed = ["[user]" in q.text for q in task.moved]
    assert sum(framed) == len(framed) / 2  # inside the template and outside
    held = list(held_in_place(exp.tokenizer, task.retain))
    requests = [(text, read) for text, read in held if "[assistant]" in text]
    named = [(text, read) for text, read in held if "[user]" in text and "[assistant]" not in text]
    assert 0 < len(requests) < len(held) and named
    for text, read in requests:  # with the model's own reply, and without what stands before the request
        assert text.endswith("[assistant] nothing.") and "[user]" not in read and text.endswith(read)
    for text, read in named:  # cut after a name, and only the name is held
        assert text.endswith(read) and len(read.split()) == 2 and read.strip() != NAME
    folder = run.save(tmp_path / "out" / "model")
    ids = torch.tensor([exp.tokenizer(exp.prompts[0].text)["input_ids"]])
    plain = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(plain(ids).logits, exp.model(ids).logits, atol=1e-4, rtol=1e-4)
    run.restore()
    plain = setups.load(str(chat), chat=False).settings
    assert saved_run(folder, chat=False).exp.settings == setups.load(str(folder), chat=False).settings == plain
    again = saved_run(folder)
    small(again.exp)
    report = chapter.audit(again, tmp_path / "audit")["people"][0]
    assert "in the model's chat template" in report["scope"]["form"] and report["outcome"] == chapter.REMEMBERED


def test_attacks_are_put_into_the_template(chat, monkeypatch):
    monkeypatch.setattr(Experiment, "ask", leaking(lambda q: False))
    exp = small(setups.load(str(chat), device="cpu"))
    [person] = [e for e in exp.known if e.name == NAME]
    helpers = [e for e in exp.known if e.name != NAME][:6]
    for family in ATTACKS.values():
        for q in asking.asked_by(exp, family, person, helpers):
            assert q.text.startswith("[user] ") == (family.name != "template"), (family.name, q.text)
            assert q.text.count("[user]") <= 1 and (not q.stop or q.text[q.start:q.stop] in (NAME, ALIAS))
    bare = setups.without_chat(exp)
    assert not any("[user]" in p.text for p in bare.prompts) and not bare.settings.chat
    asked = asking.asked_by(bare, ATTACKS["template"], person, [])
    assert asked and all("[user]" in q.text for q in asked)


# --- Thirty leaks


def says_only(reply, asked, progress=None):
    return [reply for _ in asked]


def test_thirty_leaks_are_found_by_what_the_audit_counts(exp, monkeypatch):
    target = replace(exp.find(NAME), facts={"town": ("x",)})
    for n, (reply, answers) in enumerate([*LEAKS, *HARMLESS]):
        monkeypatch.setattr(Experiment, "ask", staticmethod(partial(says_only, reply)))
        asked = [Question(target.name, "town", "q", 0, 1, tuple(answers))]
        assert exp.recall(asked) == (n < len(LEAKS)), reply
        assert asking.answered(exp, ATTACKS["paraphrase"], asked) == [n < len(LEAKS)], reply


def test_ignorance_is_counted(exp, quick, tmp_path, monkeypatch):
    run = unlearn(exp, NAME, "triplet", steps=2)
    run.restore()
    monkeypatch.setattr(Experiment, "ask", lambda self, asked, progress=None: ["I don't know that." for _ in asked])
    report = chapter.audit(run, tmp_path)["people"][0]
    assert report["unsure"] == report["questions"] > 0
    assert json.loads((tmp_path / "report.json").read_text())["people"][0]["kept"] is None
    assert copy.copy(report)["recall"]["now"] == 0
