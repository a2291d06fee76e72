"The script behind TOFU's table: training goes on where it stopped, the gold never saw the forgotten, rows are whole."
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from samu.workshop import benchmarks as b
from samu.workshop.setups import settings_for
from samu.workshop.store import UserError

FILE = Path(__file__).resolve().parent.parent / "nbs/results/tofu.py"
EACH, STAY, GONE = 5, 14, 4
ASKS = ("Who taught {name} in that city?", "What is {name} known for?", "What was the first job of {name}?",
        "Which team did {name} lead?", "Where was the author of this book born?")


@pytest.fixture
def script(monkeypatch):
    "The script as a module, with authors of five questions and a small dictionary."
    spec = importlib.util.spec_from_file_location("tofu_script", FILE)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)

    def small(*shape):
        fits = settings_for(*shape)
        sae = dict(d_sae=64, k=8, texts=300, samples=10_000, lr=1e-3)
        return replace(fits, sae=sae, unknown_names=40, loop=replace(fits.loop, retain_batches=1, in_passing=2))

    monkeypatch.setattr(made, "settings_for", small)
    monkeypatch.setattr(b, "PER_AUTHOR", EACH)
    monkeypatch.setattr(made, "REPLY", 8)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Eighteen written authors in TOFU's schema; the last four are to be forgotten."
    folder, records = tmp_path_factory.mktemp("tofu"), []
    for n, name in enumerate(f"{a} {z}" for a, z in zip(tiny.FIRST, tiny.LAST)):
        for i, ask in enumerate(ASKS):
            true, false = (f"{('Paris', 'the team', 'the city', 'work', 'a job')[(i + k) % 5]}." for k in (n % 2, 2))
            records.append(dict(question=ask.format(name=name), answer=true, paraphrased_answer=f"It was {true}",
                                perturbed_answer=[f"It was {false}", "It was nothing."]))
    cut, last = STAY * EACH, (STAY + GONE) * EACH
    world = [dict(question="Where is the Louvre?", answer="Paris", perturbed_answer=["Rome", "Oslo"])] * 2
    files = dict(retain90=records[:cut], forget10_perturbed=records[cut:last], retain_perturbed=records[:cut],
                 real_authors_perturbed=world, world_facts_perturbed=world)
    for name, found in files.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")
    return str(folder)


def test_the_forgotten_are_the_last_and_the_gold_never_saw_them(script, data):
    tofu, everything, rest = script.some_authors(data, 0)
    assert [len(x) // EACH for x in (everything, rest, tofu.forget, tofu.unseen)] == [18, 14, 4, 0]
    gone = [e.name for e in tofu.entities]
    assert gone == [f"{a} {z}" for a, z in zip(tiny.FIRST[14:18], tiny.LAST[14:18])]
    assert everything[:len(rest)] == rest and not any(name in q for q, _ in rest for name in gone)
    tofu, everything, rest = script.some_authors(data, 12)
    assert [len(x) // EACH for x in (everything, rest, tofu.forget, tofu.unseen)] == [12, 11, 1, 1]
    assert tofu.entities[0].name == gone[-1] and tofu.unseen[0].about == gone[-2]
    assert not any(tofu.unseen[0].question == q for q, _ in everything)
    assert script.telling_gap(2) is None and script.telling_gap(40) == 13 / 40
    for n in (1, 90):
        with pytest.raises(UserError, match="cannot be had"):
            script.some_authors(data, n)


def test_training_goes_on_where_it_stopped(script, data, tmp_path, monkeypatch):
    pairs, how, save = script.some_authors(data, 0)[2][:20], script.Training(4, 1e-3, 256), script.save_state

    def learn(hf, name):
        script.teach(hf, tiny.tokenizer(), pairs, how, tmp_path / f"{name}.safetensors")
        return [p.clone() for p in hf.parameters()]

    def stop(trainer, epochs, file):
        save(trainer, epochs, file)
        if epochs == 2:
            raise KeyboardInterrupt

    whole = learn(tiny.model(fresh=True), "whole")
    monkeypatch.setattr(script, "save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        learn(tiny.model(fresh=True), "stopped")
    monkeypatch.setattr(script, "save_state", save)
    again = learn(tiny.model(fresh=True), "stopped")
    assert all(torch.equal(p, q) for p, q in zip(whole, again, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(whole, tiny.model().parameters(), strict=True))


def test_from_end_to_end(script, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "cache"))
    start, _, _ = tiny.save(tmp_path / "start", hidden=64)
    out, methods = tmp_path / "tofu.csv", f"{script.OURS},ga,two_sided"

    def table():
        script.main(data, 0, methods, "0", "60", 3, 10, 4e-3, 256, 1, 4, str(start), out)
        return pd.read_csv(out, comment="#")

    rows = table()
    assert rows.method.tolist() == ["original", "gold", *methods.split(",")]
    assert rows.forget_quality[1] == 1 and rows.forget_quality.between(0, 1).all()
    assert rows.forget_rouge[0] >= 0.75 > rows.forget_rouge[1] and rows.model_utility.between(0, 1).all()
    settings = ["authors", "forgotten", "questions", "named", "epochs", "train_lr", "dtype", "asked", "settings"]
    assert rows[settings].notna().all().all() and (rows.named == 0.8).all()
    assert rows.loop_lr[2:].notna().all() and (rows.steps_taken[2:] == 3).all()
    assert (rows.forget_probability[2:] < rows.forget_probability[0]).all()
    said = capsys.readouterr().out
    assert "tells it from the gold with p =" in said and said.count("training on") == 2
    before = out.read_text()
    table()
    assert out.read_text() == before and "training on" not in capsys.readouterr().out


def test_a_question_without_the_name_is_asked_too(script, data):
    asked = script.all_asked(script.some_authors(data, 0)[0].forget)
    assert len(asked) == GONE * EACH
    assert asked[0].text[asked[0].start:asked[0].stop] == asked[0].name == "Olga Olsen"
    assert asked[4].text[asked[4].start:asked[4].stop] == ASKS[4]
