"Chapter 12: what an audit says, when it says it, and what it writes."

import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch
from house import other_thresholds
from samu.attacks import Share
from samu.your_model import (
    ABSENT,
    FAILS,
    FORGOTTEN,
    HOLDS,
    REMEMBERED,
    SILENT,
    UNCLEAR,
    audit,
    behind,
    interval,
    judge,
    outcome,
    sentence,
)
from samu.evaluation import measurement
from samu.forgetting import unlearn
from samu.workshop import auditing
from samu.workshop.auditing import CANNOT_DRAW, drawn, left_open, open_folder, page, saved_run
from samu.workshop.invented import alias
from samu.workshop.loop import Run
from samu.workshop.plots import cloud_figure
from samu.workshop.registry import METRICS, Metric, metric
from samu.workshop.setups import LoopConfig, load
from samu.workshop.statistics import wilson
from samu.workshop.store import UserError, plain_numbers

chapter = import_module("samu.your_model")
QUICK = [
    "recall_left",
    "retain_ratio",
    "namesake_ratio",
    "alignment_percentile",
    "probe_known",
    "attack_excess",
]


@pytest.fixture(scope="module")
def exp(doors):
    return doors


@pytest.fixture(scope="module")
def run(exp):
    "A run that is not in the model."
    made = unlearn(exp, exp.entities[7].name, "triplet")
    made.restore()
    return made


@pytest.fixture
def quick(monkeypatch, exp):
    "Few metrics, one figure, and no retrained models."
    monkeypatch.setattr(chapter, "METRICS", {name: METRICS[name] for name in QUICK})
    monkeypatch.setattr(chapter, "FIGURES", {"alignment_percentile": chapter.place_figure})
    real = chapter.measurement
    monkeypatch.setattr(chapter, "measurement", lambda exp, name, run, gold: real(exp, name, run))


# --- Verdicts


def low(value, original=0.9, ends=None, note="", group="attacks", name="few"):
    return judge(Metric(name, lambda m: 0.0, "low", 0.10, group=group), value, original, ends, note)


def test_verdicts():
    "One vocabulary; what a few questions cannot carry does not hold."
    assert low(0.0, ends=(40, *wilson(0.0, 40))).verdict == HOLDS
    assert low(0.0, ends=(30, *wilson(0.0, 30))).verdict == SILENT  # 95 %: up to 0.11
    assert low(0.11).verdict == FAILS
    few = low(0.0, ends=(15, *wilson(0.0, 15)))
    assert few.verdict == SILENT and "not enough questions" in few.why
    assert low(math.nan, note="it has one fact").verdict == ABSENT
    assert low(math.nan, note="power 0.2: no evidence either way").verdict == SILENT
    assert {HOLDS, FAILS, SILENT, ABSENT} == {"holds", "does not hold", "no evidence", "not measured"}


def test_a_test_that_the_original_passes_says_nothing():
    "On real people 8 of 12 originals passed the test of the definition."
    assert low(0.0, original=0.05).verdict == SILENT
    assert low(0.0, original=0.05, group="core").verdict == HOLDS  # what should stay as it was
    assert low(0.0, original=0.05, group="core", name="probe_known").verdict == SILENT


def test_what_unknown_names_fail_as_well_says_nothing():
    "On twelve real people the worst family of questions is 0.37 for names that the model never knew; the threshold is 0.15."
    few = Metric("few", lambda m: 0.0, "low", 0.10, group="attacks")
    alike, worse = (judge(few, 0.3, 0.9, unknown=zero) for zero in (0.38, 0.2))
    assert (alike.verdict, worse.verdict) == (SILENT, FAILS)
    assert "unknown names score 0.38, so the threshold cannot tell" in alike.why
    assert worse.why == "in the original, unknown names score 0.20"
    assert judge(few, 0.05, 0.9, unknown=0.38).verdict == HOLDS  # below both


def test_priors_are_taken_off():
    "Recall 0.40 where an unknown name gets 0.40 as well was `does not hold`."
    value = Share(0.40, 200, 0.40)
    ends = interval(None, "attack_excess", value)
    assert low(value, ends=ends).verdict == HOLDS
    assert (ends[0], ends[1] < 0 < ends[2]) == (200, True)
    assert low(Share(0.40, 200, 0.05), ends=(200, 0.3, 0.4)).verdict == FAILS


def test_intervals(exp, run):
    m = measurement(exp, run.target, run)
    n, bottom, top = interval(m, "retain_ratio", 1.0)
    assert n > 500 and bottom > 0.99 and top == 1 / bottom
    n, bottom, top = interval(m, "prior_gap", 1.0)
    assert n == 10 and bottom > 0.6 and top <= 1.01  # those that begin as a text of a loss are kept apart
    assert interval(m, "perplexity_ratio", 1.0) is None
    assert behind(m, "perplexity_ratio") == (len(exp.ordinary["score"]), "texts")


def test_an_interval_holds_its_number_on_both_sides():
    """A ratio above one had an interval that ended at one, so the page said "does not hold" beside an interval
    that kept to the threshold; and of a claim with a ceiling only the lower end was looked at."""
    for value in (0.5, 1.0, 1.3, 2.0):
        low_end, high_end = auditing.ratio_interval(value, 27)
        assert low_end <= value <= high_end
    entry = METRICS["namesake_ratio"]
    few, many = ((n, *auditing.ratio_interval(1.0, n)) for n in (27, 10_000))
    assert judge(entry, 1.0, 1.0, many).verdict == HOLDS
    assert judge(entry, 1.0, 1.0, few).verdict == SILENT
    assert judge(entry, 1.3, 1.0, (27, *auditing.ratio_interval(1.3, 27))).verdict == FAILS
    assert judge(entry, 1.0, 1.0, (100, 0.96, 1.2), counted=(None, "answers")).why.startswith("not enough answers")


def test_a_test_of_looks_without_power_is_no_evidence():
    entry = METRICS["probe_known"]
    assert judge(entry, 0.0, 0.9, power=0.95).verdict == HOLDS
    assert judge(entry, 0.0, 0.9, power=0.6).verdict == SILENT


def claims(**verdicts):
    made = []
    for name, verdict in verdicts.items():
        about = name.startswith(("recall", "attack", "unshown", "pooled", "relearn"))
        claim = low(0.0, group="attacks" if about else "core", name=name)
        made.append(replace(claim, verdict=verdict, title=name.capitalize()))
    return made


@pytest.mark.parametrize(
    "verdicts, says",
    [
        (
            dict(recall_left=FAILS, unshown_excess=FAILS, relearn_area=FAILS),
            "Ada is not forgotten: asked plainly, the model still gives facts; facts come back when it is trained "
            "on some of them.",
        ),
        (
            dict(recall_left=HOLDS, attack_left=FAILS),
            "Ada is not forgotten: asked in another way, it still gives facts.",
        ),
        (
            dict(recall_left=HOLDS, attack_own=FAILS, retain_ratio=FAILS),
            "Ada is not forgotten: asked, the model gives the facts no more often than about unknown names, but this "
            "claim does not hold: Attack_own. What should have stayed has changed: neighbours are forgotten too.",
        ),
        (dict(recall_left=HOLDS, unshown=HOLDS, retain=FAILS), "has changed: this claim does not hold: Retain."),
        (dict(recall_left=SILENT, pooled_excess=HOLDS), "Ada is forgotten, as far as these tests reach"),
        (dict(recall_left=SILENT, retain=HOLDS), "Not enough questions to tell whether Ada is forgotten"),
    ],
)
def test_one_sentence(verdicts, says):
    "The word first, and not a count that hides what failed."
    said = sentence("Ada", claims(**verdicts))
    assert says in said and said.startswith(("Ada is", "Not enough"))


def test_less_than_an_unknown_name_is_said_to_be_so():
    "Silence about one name gives it away; the sentence said that no facts are given, and named a claim."
    both = claims(recall_left=SILENT, prior_gap=FAILS)
    below = [replace(c, value=-0.3, about_target=True) for c in both]
    assert "less often than about an unknown name, which gives the name away" in sentence("Ada", below)
    above = [replace(c, value=0.3, about_target=True) for c in both]
    assert sentence("Ada", above) == "Ada is not forgotten: asked plainly, the model still gives facts."


def test_three_outcomes():
    assert outcome(claims(recall_left=HOLDS, retain=FAILS)) == FORGOTTEN  # what else was lost is said after it
    assert outcome(claims(recall_left=HOLDS, unshown=FAILS)) == REMEMBERED
    assert outcome(claims(recall_left=SILENT, pooled_excess=SILENT)) == UNCLEAR
    assert outcome([]) == UNCLEAR
    assert {FORGOTTEN, REMEMBERED, UNCLEAR} == {"forgotten", "not forgotten", "not enough questions to tell"}


def test_what_is_left_open():
    open_ = left_open([dict(questions=15), dict(questions=30)], False, (40, 40))
    [bound] = [line for line in open_ if "15 questions" in line]
    assert "20%" in bound and "40 of 40 known people" in "".join(open_)
    assert len(open_) == 2 + len(left_open([dict(questions=15)], True, (0, 0)))


# --- A whole audit


def test_report_and_page(exp, run, quick, tmp_path):
    "Of a run and of the folder that it was saved to: the same verdicts, weights as before, no facts on the page."
    run.reapply()
    run.save(tmp_path / "model")
    run.restore()
    first = audit(run, tmp_path / "a")
    second = audit(tmp_path / "model", tmp_path / "b")
    assert exp.applied is None
    verdicts = [[(c["metric"], c["verdict"]) for c in r["people"][0]["claims"]] for r in (first, second)]
    assert verdicts[0] == verdicts[1] and dict(verdicts[0])["attack_excess"] == FAILS  # descriptions
    person = json.loads((tmp_path / "b" / "report.json").read_text())["people"][0]
    assert person["target"] == run.target and person["outcome"] in (FORGOTTEN, REMEMBERED, UNCLEAR)
    assert person["recall"] == dict(now=0.0, original=1.0, prior=0.0, low=0.0, high=wilson(0.0, 10)[1])
    power = {c["metric"]: c["power"] for c in person["claims"]}
    assert power["alignment_percentile"] >= 0.8 and power["recall_left"] == 1 and power["retain_ratio"] is None
    [attacked] = [c for c in person["claims"] if c["metric"] == "attack_excess"]
    assert attacked["n"] == 9 and attacked["low"] > 0.2 and attacked["original"] > 0.9
    assert [c["value"] for c in person["claims"] if c["verdict"] == ABSENT] == [None]
    html = (tmp_path / "b" / "audit.html").read_text(encoding="utf-8")
    assert html.count("<img") == 1 and not any(
        s in html for s in ("<script", "http:", "https:", "{{", 'src="/')
    )
    assert not [a for answers in exp.find(run.target).facts.values() for a in answers if a in html]
    assert all(word in html for word in ("no evidence", "not measured", "not enough questions", "95 % wide"))
    assert other_thresholds(html) == []
    text = re.sub(r"<[^>]+>", " ", html.split("<body>")[1])
    first = " ".join(text.split())[: len(run.target) + 40]
    assert first.startswith(f"{run.target}: {person['outcome']}")  # what a reader sees first
    assert "The life of NAME" in html and f"Its other names are {alias(run.target)}" in html


def test_a_metric_of_ones_own_is_a_claim(exp, run, quick, tmp_path, monkeypatch):
    @metric("reply_words", good="low", threshold=2.0, title="Replies stay short")
    def reply_words(m):
        "Words in a reply."
        return 3.0

    @metric("reply_words_unknown", good="none")
    def words_about_unknown_names(m):
        "Its zero line."
        return 2.5

    for name in ("reply_words", "reply_words_unknown"):
        monkeypatch.setitem(chapter.METRICS, name, METRICS.pop(name))
    report = audit(run, tmp_path)
    [claim] = [c for c in report["people"][0]["claims"] if c["metric"] == "reply_words"]
    assert (claim["verdict"], claim["title"]) == (FAILS, "Replies stay short")
    assert claim["why"] == "in the original, unknown names score 2.50"
    assert "Replies stay short" in (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert "Replies stay short" in report["people"][0]["verdict"]


def test_several_people_are_audited_one_by_one(exp, quick, tmp_path):
    "D7: what chapter 11 recommends could be neither saved nor audited."
    names = [exp.entities[i].name for i in (7, 17)]
    both = unlearn(exp, names, "triplet", steps=3, retain_texts=80)
    both.save(tmp_path / "model")
    both.restore()
    report = audit(tmp_path / "model", tmp_path / "audit")
    assert [p["target"] for p in report["people"]] == names
    html = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert html.count("<img") == 2 and all(f"{name}: the claims" in html for name in names)


# --- Nothing is lost


def test_no_picture_is_fatal(run, quick, tmp_path, monkeypatch):
    "The report is written first; a picture that fails becomes a sentence."

    def fails(m):
        assert (tmp_path / "report.json").is_file() and (tmp_path / "audit.html").is_file()
        raise ValueError("ParseFatalException")

    monkeypatch.setattr(chapter, "FIGURES", {"alignment_percentile": fails})
    audit(run, tmp_path)
    assert "could not be drawn" in (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert ValueError in CANNOT_DRAW and KeyboardInterrupt not in CANNOT_DRAW


@pytest.mark.parametrize(
    ("claims", "now", "advice"),
    [
        (dict(recall_left=HOLDS), 0.4, []),
        (dict(recall_left=FAILS), 0.4, ["Where facts are still given"]),
        (dict(recall_left=FAILS), 0.0, ["Where facts are given less often"]),
        (dict(prior_gap=FAILS, relearn_area=FAILS), 0.4, ["Where facts are still given", "Where facts come back"]),
        (dict(attack_excess=SILENT), 0.4, ["Where there were not enough questions"]),
        (dict(retain_ratio=FAILS), 0.4, ["Where something changed"]),
    ],
)
def test_the_page_says_what_can_be_done(claims, now, advice):
    "What failed decides, and whether the facts are said less often than about an unknown name."
    rest = dict(value=0.5, original=1.0, n=None, low=None, high=None, good="", power=None, why="not enough names")
    made = [rest | dict(metric=m, verdict=v, about_target=m != "retain_ratio") for m, v in claims.items()]
    recall = dict(now=now, original=1.0, prior=0.1, low=0.0, high=0.1)
    person = dict(target="Ada", attributes=[], claims=made, counts={}, recall=recall, scope={"families": []})
    html = page(dict(people=[person | dict(outcome="forgotten")], config={}), [{}])
    lines = re.findall("<li>(.*?)</li>", html.split("What can be done")[1].split("<h2>")[0])
    assert len(lines) == len(advice) + 1 and "audit the new file" in lines[-1]
    assert all(line.startswith(a) for line, a in zip(lines, advice, strict=False))


def test_names_are_drawn_literally():
    "Dollar signs, and letters that no font has."
    frame = pd.DataFrame(dict(x=[0.0, 1, 2], y=[0.0, 1, 2], group=["known", "unknown", "original"]))
    recall = dict(now=0.0, original=1.0, prior=0.0, low=0.0, high=0.1)
    for name in ("Ca$h_^ Mon$y", "上海市", "_Ada"):
        assert list(drawn(partial(cloud_figure, frame, name))) == ["figure"]
        person = dict(target=name, attributes=[], claims=[], counts={}, recall=recall, scope={"families": []})
        report = dict(people=[person | dict(outcome="forgotten")], config={})
        assert name in page(report, [{}])


def never(*_, **__):
    raise AssertionError("work was begun")


def test_unwritable_folders_are_refused_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(chapter, "saved_run", never)
    monkeypatch.setattr(chapter, "measurement", never)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    with pytest.raises(UserError, match="may be written"):
        audit(run, tmp_path / "file" / "audit")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="thesis.tex"):
        audit(run, tmp_path / "mine")
    with pytest.raises(UserError, match="the model's own folder"):
        audit(tmp_path / "full", tmp_path / "full")

    def full(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(auditing, "atomic_write", full)
    with pytest.raises(UserError, match="No space left on device"):
        audit(run, tmp_path / "new")


def test_an_old_report_stays_until_there_is_a_new_one(tmp_path, monkeypatch):
    "An audit that was interrupted had deleted it, and said that what was finished is kept."
    folder = open_folder(tmp_path / "a", "model")
    for name in ("report.json", "audit.html"):
        (folder / name).write_text("old")
    with pytest.raises(UserError, match="no samu.json"):
        audit(tmp_path / "nowhere", folder)
    assert len(list(folder.glob("[ra]*"))) == 2
    stand_in = SimpleNamespace(targets=(), undone=nullcontext)
    monkeypatch.setattr(chapter, "saved_run", lambda folder: stand_in)
    monkeypatch.setattr(chapter, "holding", never)
    with pytest.raises(AssertionError, match="work was begun"):
        audit(tmp_path / "model", folder)
    assert len(list(folder.glob("[ra]*"))) == 2


def test_numbers_that_json_has_not():
    assert json.loads(json.dumps(plain_numbers({"a": (math.nan, 1.5), "b": Share(0.5, 3, 0.1)}))) == {
        "a": [None, 1.5],
        "b": 0.4,
    }


# --- A saved model


@pytest.fixture
def own(tmp_path):
    "A run on a model and a table of the user's own, saved: (folder, run, table)."
    folder, hf, tok = tiny.save(tmp_path / "llama")
    table = tiny.own_answers(tmp_path / "mine.csv", hf, tok, tiny.people(20))
    exp = load(str(folder), people=str(table), device="cpu")
    name = "model.layers.1.mlp.down_proj.weight"
    weight = exp.model.get_parameter(name)
    changed = weight + 0.01
    history = pd.DataFrame(dict(step=[0, 1]))
    run = Run(
        exp,
        (exp.entities[0].name,),
        "triplet",
        LoopConfig(),
        0,
        history,
        1.0,
        1.0,
        1.0,
        {name: weight.clone()},
        {name: changed},
        None,
        "run",
    )
    run.reapply()
    return run.save(tmp_path / "model"), run, table


def test_the_users_table_travels_with_the_model(own):
    "`--entities` was forgotten: the audit refused the result, or asked about other facts."
    folder, run, table = own
    table.unlink()
    again = saved_run(folder)
    assert again.targets == run.targets and again.exp.applied is None
    assert again.exp.entities == run.exp.entities and again.exp.table_hash == run.exp.table_hash
    assert list(again.changed) == list(run.changed)
    again.reapply()
    assert torch.equal(
        again.exp.model.get_parameter(next(iter(run.changed))), next(iter(run.changed.values()))
    )


def test_a_saved_model_that_is_not_as_recorded_is_refused(own):
    folder, run, _ = own
    card = json.loads((folder / "samu.json").read_text())

    def record(**changes):
        (folder / "samu.json").write_text(json.dumps(card | changes))

    record(weights_sha256="0" * 64)
    with pytest.raises(UserError, match="not those that samu saved"):
        saved_run(folder)
    record(table_hash="0" * 16)
    with pytest.raises(UserError, match="another table of people"):
        saved_run(folder)
    record(base_hash="0" * 16)
    with pytest.raises(UserError, match="not the model that .* was made from"):
        saved_run(folder)
    record(base_setup=str(folder.parent / "moved"))
    with pytest.raises(UserError, match="not at"):
        saved_run(folder)
    with pytest.raises(UserError, match="no samu.json"):
        saved_run(folder.parent)
