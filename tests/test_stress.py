"""Chapter 07 on a stand-in device, with models of open vocabulary, with bad input, and when it is interrupted."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from samu import stress as S
from samu.entities import Entity, questions
from samu.stress import (ATTACKS, CLAIMS, answer_batch, audit, can_write, forget_several, judge, make_tasks, merged_batches, name_parts, quantised_recall, relearn,
                         relearn_curves, rounded, weights_kept, writable)
from samu.unlearning import Before, answer_loss, make_task, weights_hash
from test_devices import META, WIDTH, grades, is_on, sae, setup, task, world  # noqa: F401 (fixtures)

def weights(setup): return [p for p in setup.model.original_model.parameters()]

@pytest.fixture
def real(world, tmp_path, monkeypatch):
    "A tiny untrained model with values, on the CPU, in a setup with its own cache."
    from test_devices import small_setup
    from samu.models import wrap
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "cache"))
    made = small_setup(world)
    hf = made.model.original_model
    fresh = type(hf)(hf.config)
    return replace(made, model=wrap(fresh, made.tokenizer, "cpu"), folder=tmp_path)

# --- Tensors stay on the device

def test_rounded(): is_on(rounded(META.real(3, 5), 4), "meta", 3, 5)

def test_answer_batch(setup):
    batch = answer_batch(setup, [(q.text, q.answers[0]) for q in questions(setup.entities[:2], setup.prompts)])
    assert {getattr(batch, f).device.type for f in ("ids", "row", "column")} == {"meta"} and len(batch.row) == len(batch) == 30
    is_on(answer_loss(setup, batch), "meta")

def test_name_parts(setup):
    parts = name_parts(setup, questions(setup.entities[:2], setup.prompts), 1)
    for p in parts: is_on(p, "meta", 2, WIDTH)
    assert len(parts) == 30

def test_merged_batches():
    names = [META.names(), META.names()]
    (batch,), (before,) = merged_batches(names, [Before(META.real(9, WIDTH), META.real(9, WIDTH))] * 2)
    is_on(batch.ids, "meta", 8, 7); is_on(batch.row, "meta", 18); is_on(before.stranger, "meta", 18, WIDTH)

def test_tasks_for_several(setup, sae, grades, monkeypatch):
    monkeypatch.setattr(S, "aim_for", lambda *a, **k: META.aim(sae))
    monkeypatch.setattr(S, "make_task", lambda *a, **k: make_task(*a, **k, stranger=setup.unknown[0]))
    people = [e.name for e in setup.entities[:3]]
    task = make_tasks(setup, sae, META.latents(), people, grades, retain_texts=40)
    assert len({b.ids.shape[1] for b in task.forget}) == len(task.forget) == len(task.before)
    assert {t.device.type for b in task.forget + task.answers + task.retain for t in (b.ids, b.row, b.column)} == {"meta"}
    assert sum(len(b) for b in task.answers) == len(task.asked)

# --- Whatever happens, the model is as it was

def test_weights_are_put_back(real, monkeypatch):
    before = weights_hash(dict(real.model.original_model.named_parameters()))
    person = real.entities[0]
    assert list(relearn(real, person, list(person.facts)[:3], steps=2, every=1, lr=1e-2).step) == [0, 1, 2]
    quantised_recall(real, questions([person], real.prompts), bits=(2,))
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(S, "answer", stop)
    with pytest.raises(KeyboardInterrupt): relearn(real, person, list(person.facts)[:3])
    with pytest.raises(KeyboardInterrupt): quantised_recall(real, questions([person], real.prompts))
    assert weights_hash(dict(real.model.original_model.named_parameters())) == before
    assert not any(p.requires_grad or p.grad is not None for p in weights(real))

def test_relearning_learns_what_it_is_shown(real, monkeypatch):
    person, seen, original = real.entities[0], [], S.answer
    shown = list(person.facts)[:4]
    batch = answer_batch(real, [(q.text, q.answers[0]) for q in questions([person], real.prompts, "loss") if q.attribute in shown])
    monkeypatch.setattr(S, "answer", lambda *a, **k: (seen.append(answer_loss(real, batch).item()), original(*a, **k))[1])
    relearn(real, person, shown, steps=30, every=30, lr=3e-3)
    assert seen[1] < seen[0] - .5

# --- Questions for models with an open vocabulary

def test_general_phrasings():
    reads = lambda text, **_: dict(input_ids=[1] * len(text.split()))
    open_tokenizer = type("T", (), dict(unk_token_id=0, __call__=lambda self, text, **k: reads(text)))()
    player, other = Entity("Ada Stone", "athlete", {"sport": ("chess",), "birth_place": ("Rome",)}), Entity("Bo Reed", "athlete", {"sport": ("golf",), "birth_place": ("Oslo",)})
    from samu.entities import default_prompts
    made = SimpleNamespace(tokenizer=open_tokenizer, prompts=default_prompts([player]))
    texts = {name: [q.text for q in attack(made, player, [other])] for name, attack in ATTACKS.items()}
    assert texts["paraphrase"][0] == "When people ask about the sport of Ada Stone, the answer is" and "Name: Ada Stone\nbirth place:" in texts["paraphrase"]
    assert all("golf." in t or "Oslo." in t for t in texts["few_shot"]) and all("chess" in t or "Rome" in t for t in texts["hint"])
    assert not {p.text.replace("{name}", player.name) for p in made.prompts} & {t for group in texts.values() for t in group}
    assert not any(player.name in t for t in texts["reversed"]) and can_write(open_tokenizer, "anything")

# --- Bad input

def test_bad_input(setup, sae, tmp_path):
    person = setup.entities[0]
    for call, says in ((lambda: rounded(torch.ones(2, 2), 0), "at least 2"), (lambda: relearn(setup, person, []), "must be shown"), (lambda: relearn_curves(setup, person, shown=0), "show fewer"),
                       (lambda: relearn(setup, replace(person, facts={}), ["hobby"]), "none"), (lambda: writable(setup.tokenizer, ["{name} zounds"], name=person.name), "no words"),
                       (lambda: make_tasks(setup, sae, None, []), "nobody to forget"), (lambda: forget_several(setup, sae, None, [person.name], way="later"), "at once"),
                       (lambda: audit(tmp_path, tmp_path), "no model saved by samu"), (lambda: audit(tmp_path / "gone", tmp_path), "no model saved by samu")):
        with pytest.raises(ValueError, match=says): call()
    assert not (tmp_path / "audit.html").exists()

def test_broken_card(tmp_path):
    from samu.models import load_setup
    (tmp_path / "samu.json").write_text("{")
    with pytest.raises(ValueError): audit(tmp_path, tmp_path)

# --- Verdicts

def test_every_claim_has_a_verdict():
    fields = {c.field: 0.0 for c in CLAIMS} | {c.relative: 1.0 for c in CLAIMS if c.relative and c.relative != "original"}
    original = {c.field: 1.0 for c in CLAIMS if c.relative == "original"}
    verdicts = {c.name: judge(c, fields, original, {})["verdict"] for c in CLAIMS}
    assert verdicts == {c.name: "pass" if c.most else "fail" for c in CLAIMS}
    assert {judge(c, {}, {}, {})["verdict"] for c in CLAIMS} == {"none"} and len({c.name for c in CLAIMS}) == len(CLAIMS)
    json.dumps([judge(c, fields, original, {}) for c in CLAIMS])
