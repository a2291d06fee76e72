"""Witnesses inside: who stands in the line, who calibrates it, and what an auditor with the weights finds."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from samu.entities import split_for
from samu.evaluation import measurement
from samu.forgetting import unlearn
from samu.workshop import witnesses
from samu.workshop.measuring import Measurement, Reference, holding, measured
from samu.workshop.registry import METRICS
from samu.workshop.statistics import auc
from samu.workshop.witnesses import (
    LINE,
    blocks_to_read,
    candidate_tokens,
    combined,
    line_readings,
    line_up_of,
    named,
    read_names_once,
    refitted,
    suspicions,
    witness_prompts,
)

LINE_UP = ["lineup_hit", "lineup_auc", "refit_auc", "refit_kernel_auc", "lineup_with_original", "forgotten_auc"]


@pytest.fixture(scope="module")
def run(exp):
    made = unlearn(exp, exp.entities[7].name, "triplet")
    made.restore()
    return made


def test_ties_are_shared():
    assert auc([1, 1], [0, 1]) == 0.75 and math.isnan(auc([], [1]))
    assert [named(torch.tensor(s)) for s in ([2.0, 1, 0], [1.0, 2, 0], [2.0, 2, 0])] == [1, 0, 0.5]
    flat = {"a": torch.zeros(3), "b": torch.tensor([1.0, 0, 0])}
    assert int(combined(flat)["all"].argmax()) == 0


def test_nobody_in_the_line_or_among_the_auditors_names_was_seen_by_a_loss(exp):
    m = measurement(exp, exp.entities[7].name)
    lined = line_up_of(m)
    seen = {e.name for e in (*exp.roles.retain, *exp.roles.unknown_loss)}
    everybody = [*lined.line, *lined.unknown, *lined.known]
    assert len(lined.line) == LINE == 20 and len(set(everybody)) == len(everybody)
    assert not set(everybody) & (seen | {m.split.target.name})


def test_those_who_were_forgotten_together_calibrate_nothing(exp, run):
    m = measurement(exp, run.target, run)
    away = line_up_of(m).known[0]
    m.run = replace(run, targets=(run.target, away))
    assert away not in line_up_of(m).known


def test_too_few_names_are_no_line_up(exp):
    split = split_for(exp, exp.entities[7].name)
    few = replace(split, unknown_score=split.unknown_score[:10])
    row = measured(Measurement(exp, few, None, Reference(exp, nullcontext), {}), LINE_UP)
    assert all(math.isnan(row[n]) for n in LINE_UP) and "20 unknown names" in row["notes"]


def test_one_pass_reads_what_separate_passes_read(exp):
    """The order of batches must not mix names, prompts and places."""
    from samu.workshop.batching import answer_spans, batches
    from samu.workshop.lm import answer_logprobs

    prompts, names = witness_prompts(exp, "person"), [e.name for e in (*exp.entities[:3], *exp.unknown[:3])]
    tokens = candidate_tokens(exp, "person")
    together = read_names_once(exp, names, prompts, tokens, blocks_to_read(exp))
    alone = [read_names_once(exp, [n], [p], tokens, blocks_to_read(exp)) for n in names for p in prompts]
    for field in ("residuals", "surprise", "answers"):
        each = torch.cat([getattr(r, field) for r in alone]).view(getattr(together, field).shape)
        assert torch.allclose(getattr(together, field), each, atol=1e-4), field
    first, last = names[0].split()
    before = prompts[0].text.split("{name}")[0] + first
    plain, _ = answer_logprobs(exp.model, batches(exp.tokenizer, answer_spans([(before, last)])), 1)
    assert float(together.surprise[0, 0]) == pytest.approx(-float(plain[0]), abs=1e-4)


def test_a_known_person_is_named_and_an_unknown_one_is_not(exp):
    m = measurement(exp, exp.entities[7].name)
    assert METRICS["lineup_hit"].measure(m) == 1 and METRICS["refit_auc"].measure(m) > 0.9
    split = split_for(exp, exp.entities[7].name)
    ranks = []
    for someone in split.unknown_score[:6]:
        rest = [e for e in split.unknown_score if e.name != someone.name]
        innocent = replace(split, target=someone, unknown_score=rest)
        one = Measurement(exp, innocent, None, Reference(exp, nullcontext), {})
        ranks.append(METRICS["lineup_auc"].measure(one))
    assert 0.1 < sum(ranks) / len(ranks) < 0.9 and min(ranks) < 0.5 < max(ranks)


def test_the_line_up_after_forgetting(exp, run):
    before = measured(measurement(exp, run.target), LINE_UP)
    m = measurement(exp, run.target, run)
    with holding(run):
        after = measured(m, LINE_UP)
        readings = line_readings(m)
        table = refitted(m)
    assert before["lineup_auc"] == 1 and after["refit_auc"] < before["refit_auc"]
    assert after["lineup_with_original"] == 1  # whoever has the original sees what has changed
    assert math.isnan(before["lineup_with_original"]) and "fewer than nine others" in after["notes"]
    found = suspicions(readings)
    assert set(found) == {"probe", "distance", "surprise", "below"} and all(len(x) == 21 for x in found.values())
    assert table.held_out.max() > 0.9 and set(table.probe) == {"linear", "kernel"}


def test_readings_are_made_once(exp, run, monkeypatch):
    """The line-up and the probes share one pass, and the original's is kept."""
    m, made = measurement(exp, run.target, run), []
    real = witnesses.read_names_once
    with holding(run):
        measured(m, LINE_UP)
        monkeypatch.setattr(witnesses, "read_names_once", lambda *a: made.append(1) or real(*a))
        measured(m, LINE_UP)
    assert made == []


def test_a_bad_witness_is_no_evidence(exp, monkeypatch):
    m = measurement(exp, exp.entities[7].name)
    monkeypatch.setattr(witnesses, "held_out_auc", lambda *a: 0.6)
    row = measured(m, ["refit_auc"])
    assert math.isnan(row["refit_auc"]) and "no evidence" in row["notes"]


def test_the_lens_finds_what_the_model_knows(exp):
    m = measurement(exp, exp.entities[7].name)
    table = witnesses.lens_table(m)
    assert len(table) == exp.n_layers and table.target.iloc[-1] > 0.9 and table.prior.max() < 0.4
    assert METRICS["lens_excess"].measure(m) > 0.5
