"Chapter 11: several people in one run, saved and read back."

from dataclasses import replace

import pytest
import tiny
import torch
from samu import many
from samu.evaluation import evaluate, measurement
from samu.forgetting import make_task, method_named
from samu.workshop.auditing import saved_run
from samu.workshop.batching import batches, name_spans
from samu.workshop.lm import residuals_at
from samu.workshop.loop import configure, load_methods
from samu.workshop.privacy import read_card
from samu.workshop.store import UserError, tensors_hash
from samu.workshop.tables import Question

SHORT = dict(steps=4, retain_texts=80, retain_batches=1)


@pytest.fixture(scope="module")
def people(exp):
    return [exp.entities[i].name for i in (7, 17, 27)]


@pytest.fixture(scope="module")
def tasks(exp, people):
    config = configure(exp.settings, method_named("triplet"), dict(retain_texts=200))
    return [make_task(exp, [name], config, i, people[:i]) for i, name in enumerate(people)]


def asked(n):
    texts = [f"{'word ' * (i % 5)}Anna Abbot sings" for i in range(n)]
    return [Question("Anna Abbot", "x", t, t.index("Anna"), t.index("Anna") + 10, ()) for t in texts]


def test_merged_batches_keep_the_order_of_their_places():
    hf, tok = tiny.model(), tiny.tokenizer()
    parts = [b for i in range(4) for b in batches(tok, name_spans(asked(3 + i))[0], cut=True)]
    apart = torch.cat([residuals_at(hf, b, 1) for b in parts])
    joined = many.merged(parts)
    assert len(joined) < len(parts) and sum(map(len, joined)) == sum(map(len, parts))
    torch.testing.assert_close(
        torch.cat([residuals_at(hf, b, 1) for b in joined]), apart, atol=1e-5, rtol=1e-4
    )
    for field in ("position", "item", "from_end"):
        assert torch.equal(*(torch.cat([getattr(b, field) for b in group]) for group in (joined, parts)))


def test_small_merged_batches_stay_small(monkeypatch):
    monkeypatch.setattr(many, "BATCH_TOKENS", 60)
    joined = many.merged(batches(tiny.tokenizer(), name_spans(asked(20))[0], cut=True, batch_tokens=30))
    assert len(joined) > 1 and all(b.ids.numel() <= 60 for b in joined)


def test_texts_that_mention_somebody_are_left_out(exp, tasks, people):
    name = exp.roles.retain[0].name
    pool = [b for t in tasks for b in t.retain]
    assert any(name in text for b in pool for text in exp.tokenizer.batch_decode(b.ids))
    fewer = many.without_names(exp, pool, [name])
    texts = [text for b in fewer for text in exp.tokenizer.batch_decode(b.ids)]
    assert texts and not any(name in text for text in texts)
    for b in fewer:
        assert int(b.batch_index.max()) < len(b) and b.mask[b.batch_index, b.position].all()
    assert many.without_names(exp, pool, ["Zzz"]) == pool


def test_together(exp, tasks, people):
    both = many.together(tasks[:2])
    assert [e.name for e in both.targets] == people[:2]
    assert (
        len(both.frozen.own)
        == sum(len(t.frozen.own) for t in tasks[:2])
        == sum(len(b.item) for b in both.forget)
    )
    own = torch.cat([residuals_at(exp.model, b, exp.layer) for b in both.forget])
    torch.testing.assert_close(own, both.frozen.own, atol=1e-4, rtol=1e-3)
    assert both.answer_logprobs()[0].shape == (len(both.asked),)


def test_those_forgotten_before_are_half_of_each_loss(exp, tasks, people):
    "And the pool of retained texts grows, without anybody who has been forgotten."
    method = replace(
        method_named("triplet"),
        prepare=lambda task: lambda step: torch.tensor(float(len(task.targets)), requires_grad=True),
    )
    turns = many.turns_of(tasks, method)
    assert [loss(0).item() for loss, _ in turns] == [1.0, 1.0, 1.5]
    for i, (_, draws) in enumerate(turns):
        texts = [text for drawn in draws for b in drawn for text in exp.tokenizer.batch_decode(b.ids)]
        assert texts and not any(name in text for name in people[: i + 1] for text in texts)


def test_in_turn_rehearses_what_the_retain_loss_draws_from(exp, tasks):
    "Losses on answers had drawn from the last task's texts alone."
    method = replace(method_named("triplet"), prepare=lambda task: lambda step: torch.zeros((), requires_grad=True))
    alike = [replace(t, config=replace(t.config, retain="answers", steps=30)) for t in tasks[:2]]
    drawn = {id(b) for step in many.turns_of(alike, method)[1][1] for b in step}
    assert drawn - {id(b) for b in alike[1].retain_answers} and not drawn & {id(b) for t in alike for b in t.retain}


@pytest.mark.parametrize("way", ["at once", "in turn"])
def test_a_run_on_several_is_saved_and_read_back(exp, people, tmp_path, way):
    "D7: saving one was a ValueError."
    before = tensors_hash(dict(exp.model.named_parameters()))
    run = many.unlearn_many(exp, people[:2], "triplet", way, 0, **SHORT)
    steps = run.steps
    row = evaluate(run, ["target_recall", "retain_ratio"])
    folder = run.save(tmp_path / "model")
    run.restore()
    assert tensors_hash(dict(exp.model.named_parameters())) == before
    assert steps == (4 if way == "at once" else 8) and row.target == " + ".join(people[:2])
    assert read_card(folder)["forgotten"] == people[:2] and people[0] not in (folder / "samu.json").read_text()
    again = saved_run(folder)
    assert again.targets == tuple(people[:2]) and again.exp.applied is None
    again.reapply()
    got = [again.exp.recall(measurement(exp, p).asked["target"]) for p in people[:2]]
    assert sum(got) / 2 == pytest.approx(row.target_recall)


@pytest.mark.parametrize("retain", ["kl", "both", "none"])
def test_in_turn_each_retain_loss_begins_at_zero(exp, people, retain):
    "What the frozen model computes is what that loss compares: it had been the residual, whatever the loss."
    load_methods()
    run = many.unlearn_many(exp, people[:2], "stand_in", "in turn", retain=retain, lr=1e-9, **SHORT)
    run.restore()
    assert run.history.retain.dropna().abs().max() < 1e-4


def test_an_interrupt_puts_the_weights_back(exp, people, monkeypatch):
    before = tensors_hash(dict(exp.model.named_parameters()))

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("samu.workshop.loop.History.add", stopped)
    with pytest.raises(KeyboardInterrupt):
        many.unlearn_many(exp, people[:2], "triplet", "in turn", 1, **SHORT)
    assert tensors_hash(dict(exp.model.named_parameters())) == before and exp.applied is None


def test_bad_input(exp, people):
    for names, way in ((people[:1] * 2, "at once"), (people, "soon")):
        with pytest.raises(UserError, match="no name twice"):
            many.unlearn_many(exp, names, "triplet", way)
    with pytest.raises(UserError, match="at least one name"):
        many.unlearn_many(exp, [], "triplet")
    with pytest.raises(UserError, match="did you mean"):
        many.unlearn_many(exp, [people[0][:-1]])
