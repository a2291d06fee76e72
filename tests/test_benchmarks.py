"TOFU and RWKU: files in their layouts are read, every corruption is one line, metrics agree with other code."
import json
import math

import numpy as np
import pytest
import tiny
import torch
from samu.workshop import benchmarks as b
from samu.workshop.store import UserError


def entry(name, i, paraphrase=True):
    more = dict(paraphrased_answer=f"It was the prize of year {i}.") if paraphrase else {}
    return dict(question=f"Which prize did {name} win in {1990 + i}?", answer=f"The prize {i}.",
                perturbed_answer=[f"Team {i}.", f"Nothing in {i} or {i + 1}."], **more)


def write(folder, name, records):
    (folder / f"{name}.json").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


@pytest.fixture
def tofu_folder(tmp_path):
    forget = [entry(n, i) for n in ("Ana Bell", "Carl van Dorn") for i in range(20)]
    write(tmp_path, "forget01_perturbed", forget)
    write(tmp_path, "retain_perturbed", [entry("Eva Finn", i) for i in range(20)])
    write(tmp_path, "retain99", [entry("Eva Finn", i) for i in range(20)])
    for name in ("real_authors", "world_facts"):
        write(tmp_path, f"{name}_perturbed", [entry("x", i, False) for i in range(4)])
    return tmp_path


def test_tofu_gives_entities_questions_and_retain_sets(tofu_folder):
    tofu = b.read_tofu(tofu_folder, "forget01")
    assert [e.name for e in tofu.entities] == ["Ana Bell", "Carl van Dorn"]
    assert [len(e.facts) for e in tofu.entities] == [20, 20] and len(tofu.train_retain) == 20
    assert tofu.world_facts[0].paraphrased == "The prize 0."


def broken(folder, name, how):
    file = folder / f"{name}.json"
    lines = file.read_text().splitlines()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_text("")
    elif how == "cut":
        file.write_text("\n".join(lines)[:-20])
    elif how == "latin":
        file.write_bytes("\n".join(lines).replace("prize", "pré").encode("latin-1"))
    else:
        record = json.loads(lines[1])
        if how.startswith("no "):
            del record[how[3:]]
        else:
            record |= {"word": dict(perturbed_answer="word"), "number": dict(answer=3),
                       "null": dict(question=None), "hole": dict(perturbed_answer=["a", ""])}[how]
        file.write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]))


@pytest.mark.parametrize("how, says", [
    ("missing", "no file"), ("empty", "is empty"), ("cut", "not valid JSON"), ("latin", "not UTF-8"),
    ("no question", "entry 2: 'question'"), ("no perturbed_answer", "entry 2: 'perturbed_answer'"),
    ("word", "a list of texts"), ("number", "no text"), ("null", "missing or empty"), ("hole", "no text")])
def test_a_damaged_tofu_file_is_one_line(tofu_folder, how, says):
    broken(tofu_folder, "forget01_perturbed", how)
    with pytest.raises(UserError, match=says) as e:
        b.read_tofu(tofu_folder, "forget01")
    assert len(str(e.value).splitlines()) == 1 and "forget01_perturbed.json" in str(e.value)


def test_wrong_splits_and_places(tofu_folder):
    with pytest.raises(UserError, match="splits"):
        b.read_tofu(tofu_folder, "forget20")
    with pytest.raises(UserError, match="cannot be fetched from the hub .*or give a folder"):
        b.read_tofu("nobody/nothing-here", "forget01")


def test_a_filled_hub_cache_will_do(tofu_folder, tmp_path_factory, monkeypatch):
    import huggingface_hub.constants as constants
    cache = tmp_path_factory.mktemp("hub")
    place = cache / "datasets--locuslab--TOFU"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots").mkdir()
    tofu_folder.rename(place / "snapshots" / "abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(b.read_tofu("locuslab/TOFU", "forget01").forget) == 40


@pytest.fixture(scope="module")
def lm():
    return tiny.model("llama"), tiny.tokenizer()


def losses_by_transformers(hf, tok, prompt, answer):
    "Mean loss of answer and end, and log-probabilities [tokens, vocabulary], from transformers alone."
    whole = tok(prompt)["input_ids"], tok(f"{prompt} {answer}")["input_ids"] + [tok.eos_token_id]
    start = len(whole[0])
    logits = hf(torch.tensor([whole[1]])).logits[0].log_softmax(-1)
    own = torch.tensor(whole[1][start:])
    log_p = logits[start - 1:-1]
    return -log_p.gather(-1, own[:, None]).mean().item(), log_p[:-1], own[:-1]


def test_scores_agree_with_transformers(lm):
    hf, tok = lm
    pairs = [("Question: Who is Anna?\nAnswer:", "She lives in that city."), ("What is known?", "Nothing.")]
    for (prompt, answer), s in zip(pairs, b.score_answers(hf, tok, pairs)):
        loss, log_p, ids = losses_by_transformers(hf, tok, prompt, answer)
        own = log_p.gather(-1, ids[:, None])[:, 0]
        mean = (log_p.exp() * log_p).sum(-1)
        sd = ((log_p.exp() * log_p**2).sum(-1) - mean**2).sqrt()
        assert s.loss == pytest.approx(loss, abs=1e-5) and s.probability == pytest.approx(math.exp(-loss))
        np.testing.assert_allclose(s.log_p, own.numpy(), atol=1e-5)
        np.testing.assert_allclose(s.z, ((own - mean) / sd).numpy(), atol=1e-4)
        assert s.said.tolist() == (log_p.argmax(-1) == ids).tolist()


def test_the_whole_table(lm, tofu_folder):
    hf, tok = lm
    tofu = b.read_tofu(tofu_folder, "forget01")
    ratios = b.truth_ratios(hf, tok, tofu.forget, b.plain_prompt)
    first, prompt = tofu.forget[0], b.plain_prompt(tofu.forget[0].question)
    false = [losses_by_transformers(hf, tok, prompt, a)[0] for a in first.perturbed]
    true = losses_by_transformers(hf, tok, prompt, first.paraphrased)[0]
    assert ratios[0] == pytest.approx(math.exp(true - sum(false) / 2), rel=1e-4)
    row = b.tofu_scores(hf, tok, tofu, gold=ratios, tokens=5)
    assert row["forget_quality"] == pytest.approx(1.0) and 0 <= row["model_utility"] <= 1
    assert set(row) >= {"forget_rouge", "extraction_strength", "forget_against_retain_min_k++"}


def answer(loss, log_p):
    log_p = np.array(log_p)
    return b.Scored(loss, log_p, log_p > -1, log_p / 2, "aaaa")


def test_the_table_by_hand(monkeypatch):
    "Nine numbers make the utility; membership and quality come from the forgotten questions' own scores."
    stored = dict(forget=(0.2, 0.3, 0.9), retain=(0.5, 0.5, 0.5), real_authors=(1.0, 0.5, 0.5), world_facts=(0.25, 1.0, 0.5))
    own = dict(forget=[answer(1.0, [-1, -3]), answer(2.0, [-2, -2])], retain=[answer(3.0, [-4, 0]), answer(1.5, [-2, -5])])
    ratios = np.array([0.1, 0.2, 0.3, 0.4])

    def group(hf, tokenizer, probes, prompt, offered, tokens):
        assert offered == (probes in ("real_authors", "world_facts")) and tokens == 60
        numbers = dict(zip(("probability", "rouge", "truth"), stored[probes])) | dict(truth_forgotten=0.7, extraction=0.4)
        return numbers, own.get(probes, []), ratios

    def unseen(hf, tokenizer, pairs):
        assert pairs == [(b.plain_prompt("Who?"), "He.")]
        return [answer(4.0, [-9])]

    monkeypatch.setattr(b, "group_scores", group)
    monkeypatch.setattr(b, "score_answers", unseen)
    tofu = b.Tofu("forget", "retain", "real_authors", "world_facts", [], "forget10", (b.Probe("", "Who?", ("He.",)),))
    row = b.tofu_scores(None, None, tofu, gold=[0.5, 0.6, 0.7, 0.8])
    # nine numbers, whose reciprocals are 2 + 2 + 2, 1 + 2 + 2 and 4 + 1 + 2
    assert row["model_utility"] == pytest.approx(9 / 18)
    assert (row["forget_probability"], row["forget_rouge"], row["forget_truth_ratio"]) == (0.2, 0.3, 0.7)
    # members 1 and 2 against 3 and 1.5: three of four pairs in order; lowest tokens 3 and 2 against 4 and 5: all
    assert row["forget_against_retain_loss"] == row["forget_against_retain_zlib"] == 0.75
    assert row["forget_against_retain_min_k"] == row["forget_against_retain_min_k++"] == 1.0
    assert row["forget_against_unseen_loss"] == 1.0
    # two samples of four that do not meet: 2 of the 70 ways to share eight ranks; the reference takes reciprocals
    assert row["forget_quality"] == pytest.approx(2 / 70)
    assert b.forget_quality(1 / ratios, [1 / 0.5, 1 / 0.6, 1 / 0.7, 1 / 0.8]) == pytest.approx(2 / 70)


@pytest.fixture
def rwku_folder(tmp_path):
    place = tmp_path / "3_Anna_Baker"
    place.mkdir()
    for level in b.LEVELS:
        subject = "Anna Baker" if level.startswith("forget") else "Anna Baker"
        records = [dict(query=f"{subject} works for the ___ in {i}.", answer="team", subject=subject,
                        level=level[-1], type="cloze") for i in range(3)]
        (place / f"{level}.json").write_text(json.dumps(records, indent=4))
    mmlu = [dict(question="Which is a city?", choices=["Paris", "team", "job", "he"], answer=0, task="x",
                 examples=[], subject="Anna Baker")] * 2
    (place / "retain_mmlu.json").write_text(json.dumps(mmlu))
    bbh = [dict(task="x", cot="Q: 1?\nA: So the answer is 1.", question="2?", answer="2", subject="Anna Baker")]
    (place / "retain_bbh.json").write_text(json.dumps(bbh))
    mc1 = dict(choices=["in that city", "nowhere"], labels=[1, 0])
    truthful = [dict(question="Where?", mc1_targets=mc1, mc2_targets=mc1, subject="Anna Baker")]
    (place / "truthful.json").write_text(json.dumps(truthful))
    (place / "fluency.json").write_text(json.dumps([dict(instruction="Tell a tale.", subject="Anna Baker")]))
    trivia = [dict(question="Where is the Louvre?", answers=["Paris", "France"], subject="Anna Baker")]
    (place / "triviaqa.json").write_text(json.dumps(trivia))
    return tmp_path


def test_rwku(lm, rwku_folder):
    rwku = b.read_rwku(rwku_folder, "Anna Baker")
    assert b.read_rwku(rwku_folder / "3_Anna_Baker").subject == "Anna Baker"
    assert [len(rwku.probes[level]) for level in b.LEVELS] == [3] * 5
    assert {p.about for p in rwku.probes["forget_level1"]} == {"Anna Baker"}
    row = b.rwku_scores(*lm, rwku, tokens=3)
    sorts = ("general", "reasoning", "truthfulness", "factuality", "fluency")
    assert set(row) == {*b.LEVELS, *(f"utility_{s}" for s in sorts)}
    assert all(0 <= v <= 1 for k, v in row.items() if k != "utility_fluency") and row["utility_fluency"] >= 0


@pytest.mark.parametrize("file, change, says", [
    ("forget_level2", lambda r: r.pop("query"), "entry 1: 'query'"),
    ("forget_level3", lambda r: r.update(answer=""), "entry 1: 'answer'"),
    ("neighbor_level1", lambda r: r.update(subject="Bob"), None),
    ("retain_mmlu", lambda r: r.update(answer=7), "number of a choice"),
    ("retain_mmlu", lambda r: r.update(choices="A"), "a list of texts"),
    ("retain_bbh", lambda r: r.pop("cot"), "entry 1: 'cot'"),
    ("retain_bbh", lambda r: r.update(answer=[]), "entry 1: 'answer'"),
    ("truthful", lambda r: r.pop("mc1_targets"), "entry 1: 'mc1_targets'"),
    ("truthful", lambda r: r["mc1_targets"].update(labels=[0, 0]), "entry 1: 'labels'"),
    ("truthful", lambda r: r["mc1_targets"].update(choices=[]), "entry 1: 'choices'"),
    ("fluency", lambda r: r.update(instruction=3), "entry 1: 'instruction'"),
    ("triviaqa", lambda r: r.pop("answers"), "entry 1: 'answers'")])
def test_a_damaged_rwku_file_is_one_line(rwku_folder, file, change, says):
    place = rwku_folder / "3_Anna_Baker" / f"{file}.json"
    records = json.loads(place.read_text())
    change(records[0])
    place.write_text(json.dumps(records))
    if says is None:  # another person's probe is passed over
        assert len(b.read_rwku(rwku_folder, "Anna Baker").probes[file]) == 2
        return
    with pytest.raises(UserError, match=says) as e:
        b.read_rwku(rwku_folder, "Anna Baker")
    assert f"{file}.json" in str(e.value) and len(str(e.value).splitlines()) == 1


DAMAGES = [(None, "no file|no target"), ("", "is empty"), ("[{", "not valid JSON"), ("[3]", "entry 1")]
FILES = ["retain_mmlu", "retain_bbh", "truthful", "triviaqa", "fluency", *b.LEVELS]


@pytest.mark.parametrize("file, text, says", [(f, *DAMAGES[2]) for f in FILES] + [(FILES[0], *d) for d in DAMAGES])
def test_every_rwku_file_is_checked(rwku_folder, file, text, says):
    place = rwku_folder / "3_Anna_Baker" / f"{file}.json"
    place.unlink() if text is None else place.write_text(text)
    with pytest.raises(UserError, match=says) as e:
        b.read_rwku(rwku_folder, "Anna Baker")
    assert len(str(e.value).splitlines()) == 1


def test_utility_by_hand():
    assert b.concluded("First. So the answer is the Moon. Q:") == b.concluded("moon") == "moon"
    assert b.fluency("a a a a a a") == 0.0
    assert b.fluency("a b c") == pytest.approx((2 / 3 * 1.0 + 4 / 3 * 0.0) / 2)


def test_rwku_names_the_nearest_target(rwku_folder):
    with pytest.raises(UserError, match="did you mean 'Anna Baker'"):
        b.read_rwku(rwku_folder, "Ana Baker")
    (rwku_folder / "3_Anna_Baker" / "triviaqa.json").unlink()
    with pytest.raises(UserError, match="no file 'triviaqa.json'"):
        b.read_rwku(rwku_folder, "Anna Baker")


def test_extraction_strength_and_rouge_by_hand():
    assert b.extraction_strength([0, 1, 1, 1]) == 0.75
    assert b.extraction_strength([1, 0]) == 0.5  # the reference's smallest value: one token's share
    assert b.rouge_recalls(["He was born in Paris", ""], ["in Paris, France", "Rome"]) == [2 / 3, 0.0]
