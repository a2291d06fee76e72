"""A real model, Gemma 3 270M, is made to forget Michael Jordan: a small table, a small dictionary, the setup's own
training. A few minutes.

Nothing here is skipped. Where the package with the model's weights is missing, the tests fail and say what to install.
"""

import importlib.util
import json
from dataclasses import replace

import pytest
import samu
from samu.workshop.privacy import read_card
from samu.workshop.setups import GEMMA_INSTALL, GEMMA_PACKAGE, gemma_folder

TARGET = "Michael Jordan"
ATTRIBUTES = {"athlete": ("sport", "nationality"), "city": ("country", "continent")}
SIZES = {"athlete": 18, "city": 12}


def small_table():
    "The first athletes and cities of the package's table, and the target, with the attributes above."
    from samu.workshop.tables import real_entities

    everyone = [replace(e, facts={a: e.facts[a] for a in ATTRIBUTES[e.kind]}) for e in real_entities() if e.kind in SIZES]
    chosen = [e for kind, n in SIZES.items() for e in [e for e in everyone if e.kind == kind][:n]]
    return chosen + [e for e in everyone if e.name == TARGET and e not in chosen]


@pytest.fixture(scope="module")
def exp():
    "Gemma with the small table and a small dictionary."
    from samu.workshop.tables import real_prompts

    if importlib.util.find_spec(GEMMA_PACKAGE) is None:
        pytest.fail(f"Gemma 3 270M is not installed: run {GEMMA_INSTALL}; `make test` does so", pytrace=False)
    made = samu.load("gemma-3-270m", people=small_table(), only=True)
    prompts = [p for p in real_prompts() if p.attribute in ATTRIBUTES.get(p.kind, ())]
    sae = dict(d_sae=1024, k=32, samples=40_000, texts=1500)
    return replace(made, prompts=prompts, settings=replace(made.settings, sae=sae))


@pytest.fixture(scope="module")
def run(exp):
    return samu.unlearn(exp, TARGET)


@pytest.fixture(scope="module")
def row(run):
    return samu.evaluate(run)


def test_model_is_the_packages_own(exp):
    source = json.loads((gemma_folder() / "source.json").read_text(encoding="utf-8"))
    assert source["sha256"] == importlib.import_module(GEMMA_PACKAGE).EXPECTED_SHA256
    assert (exp.n_layers, exp.d_model) == (18, 640)


def test_the_model_grades_and_the_target_is_known(exp):
    known = {e.name: e for e in exp.known}
    assert TARGET in known and known[TARGET].facts["sport"][0] == "basketball"
    assert len(known) >= 20 and len(exp.unknown) >= 20


def test_target_is_forgotten_and_others_are_not(run, row):
    assert 0 < run.steps <= run.exp.settings.loop.steps
    assert row.recall_left <= 0.5
    assert row.retain_ratio >= 0.8 and row.perplexity_ratio <= 1.2


def test_saved_model_is_the_one_in_memory(exp, run, row, tmp_path):
    "In the precision of the original's folder, to the bit; so the logits are close."
    import torch
    from samu.entities import questions
    from samu.workshop.lm import load_lm
    from samu.workshop.measuring import holding

    with holding(run):
        folder = run.save(tmp_path / "model")
        saved, tokenizer = load_lm(folder, exp.device, exp.dtype)
        stored, kept = load_lm(folder, exp.device)[0], dict(exp.model.named_parameters())
        assert all(torch.equal(p, kept[name].to(p.dtype)) for name, p in saved.to(torch.bfloat16).named_parameters())
        q = questions([exp.find(TARGET)], exp.prompts)[0]
        ids = torch.tensor([tokenizer(q.text)["input_ids"]], device=exp.device)
        with torch.no_grad():
            assert torch.allclose(stored(ids).logits.float(), exp.model(ids).logits.float(), atol=0.5)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "bfloat16", "as the original's folder"
    card = read_card(folder)
    assert card["forgotten"] == [TARGET] and card["base_setup"] == "gemma-3-270m"
    assert card["base_hash"] == exp.model_hash and card["entities"], "it knows its table"


def test_restored(exp, run, row):
    run.restore()
    assert exp.applied is None
    assert exp.recall([q for q in asked_about(exp)]) >= 0.5


def asked_about(exp):
    from samu.entities import questions

    return questions([e for e in exp.known if e.name == TARGET], exp.prompts)
