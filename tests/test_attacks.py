"Chapter 08: attacks, what is put back after them, and what they are compared with."

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch
from samu import attacks
from samu.evaluation import evaluate, measurement, quick_metrics
from samu.forgetting import unlearn
from samu.workshop import attacking
from samu.workshop.attacking import (
    Share,
    beside_reference,
    kept_table,
    place_among,
    rounded_weights,
    truth_place,
)
from samu.workshop.registry import ATTACKS, METRICS, attack
from samu.workshop.setups import load
from samu.workshop.store import UserError, tensors_hash
from samu.workshop.tables import Entity, Question


@pytest.fixture(scope="module")
def exp():
    "The biographies."
    made = load("biographies")
    made.roles, made.latents, made.centroids
    return made


@pytest.fixture(scope="module")
def target(exp):
    return exp.entities[7].name


@pytest.fixture(scope="module")
def run(exp, target):
    "A run that is not in the model."
    made = unlearn(exp, target, "triplet")
    made.restore()
    return made


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(attacking, "STEPS", 4)


def weights(exp):
    return tensors_hash(dict(exp.model.named_parameters()))


# --- Questions


def test_own_attack_in_ten_lines_is_found_everywhere(exp, target, run):
    "D9: one decorated function; the table, the metric and an evaluation have it without another edit."

    @attack("twice", title="the name twice")
    def said_twice(exp, entity, helpers):
        asked = attacks.questions([entity], exp.prompts)
        return [attacking.in_new_words(q, f"{entity.name}. {q.text}") for q in asked]

    try:
        row = attacks.attack_table(measurement(exp, target)).set_index("attack").loc["twice"]
        assert row.questions == 15 and row.original > 0.5 and row.prior < 0.1
        assert evaluate(run, ["attack_recall"]).attack_recall <= 0.1
        with pytest.raises(UserError, match="already registered"):
            attack("twice")(lambda exp, entity, helpers: [])
    finally:
        ATTACKS.pop("twice")


def test_no_attack_repeats_a_prompt(exp, target):
    m = measurement(exp, target)
    seen = {q.text for q in attacks.questions([m.split.target], exp.prompts, None)}
    for family in ATTACKS.values():
        asked = family.ask(exp, m.split.target, list(m.split.held_out[:12]))
        assert asked and not seen & {q.text for q in asked}
        assert all(q.text[q.start : q.stop] in ("", target) for q in asked)


def test_hints_pass_over_facts_without_scoring_prompts(exp, target):
    "D19: `rng.choice([])` was an IndexError."
    known = measurement(exp, target).split.target
    gone, *rest = known.facts
    few = replace(exp, prompts=[p for p in exp.prompts if p.attribute != gone or p.split == "loss"])
    asked = attacks.hints(few, known, [])
    assert {q.attribute for q in asked} == set(rest)
    assert not any(known.facts[gone][0] in q.text for q in asked)
    alone = attacks.hints(exp, replace(known, facts={gone: known.facts[gone]}), [])
    assert alone and all(q.text for q in alone)


def test_original_and_prior_are_the_originals(exp, target, run):
    "What unknown names get is measured on the original, also while a run is in the model."
    before = attacks.attack_table(measurement(exp, target)).set_index("attack")
    m = measurement(exp, target, run)
    run.reapply()
    try:
        after = attacks.attack_table(m).set_index("attack")
        assert exp.applied == run.id
    finally:
        run.restore()
    pd.testing.assert_frame_equal(before[["original", "prior"]], after[["original", "prior"]])
    assert (before.recall == before.original).all() and after.recall.max() <= 0.1


def test_a_reply_is_long_enough_for_a_name(exp, target):
    "The right answer of a reversed question is a name of more tokens than a reply has."
    said = []
    spy = SimpleNamespace(settings=exp.settings, tokenizer=exp.tokenizer)
    family = SimpleNamespace(
        ask=lambda *_: [Question(target, "x", "viola is the instrument of", 0, 0, (target,))]
    )
    replace_, attacking.replace = attacking.replace, lambda thing, **new: _noted(thing, new, said)
    try:
        attacking.family_recall(spy, family, Entity(target, "person", {}), [])
    finally:
        attacking.replace = replace_
    assert said[0] > exp.settings.reply_tokens


def _noted(thing, new, said):
    if "reply_tokens" in new:
        said.append(new["reply_tokens"])
        return thing
    return SimpleNamespace(recall=lambda asked: 0.0)


# --- Weights are put back


def test_weights_are_as_before(exp, target, short):
    "After relearning and rounding, and after an error in the middle."
    before, known = weights(exp), measurement(exp, target).split.target
    table = attacks.relearn(exp, known, list(known.facts)[:3])
    assert table.step.tolist() == [0, 4] and table.unshown[0] == 1
    with pytest.raises(ZeroDivisionError), rounded_weights(exp, 4):
        assert weights(exp) != before
        1 / 0
    with pytest.raises(ZeroDivisionError):
        attacking.fine_tune(exp, [("Ada is a", "painter")], lambda: 1 / 0)
    assert weights(exp) == before
    assert not any(p.requires_grad for p in exp.model.parameters())


def test_what_cannot_be_shown_or_watched_is_refused(exp, target):
    known = measurement(exp, target).split.target
    for shown in ([], list(known.facts)):
        with pytest.raises(UserError, match="not all"):
            attacks.relearn(exp, known, shown)


# --- References


def test_an_unknown_name_is_the_reference_where_nothing_can_be_retrained(exp, target, short):
    m = measurement(exp, target)
    assert m.reference.gold == []
    asked = []

    def curves(model, entity):
        asked.append(entity.name)
        return pd.DataFrame(dict(step=[0, 4], unshown=[0.0, 0.5], draw=0))

    assert beside_reference(m, curves) is not None
    assert asked[0] == target and asked[1] in {e.name for e in m.split.unknown_score}


def test_one_fact_cannot_be_relearned(exp, target):
    "No error, but a note."
    m = measurement(exp, target)
    one = dict([next(iter(m.split.target.facts.items()))])
    m.split = replace(m.split, target=replace(m.split.target, facts=one))
    assert math.isnan(attacks.unshown_excess(m)) and math.isnan(attacks.relearn_ratio(m))
    assert "one fact to show" in m.notes["unshown_excess"]


def test_names_of_unusual_length_are_not_refused(exp, target):
    "Where no unknown name has as many tokens there is no patch, and no error."
    m = measurement(exp, target)
    m.split = replace(m.split, unknown_score=())
    assert math.isnan(attacks.depth_score(m)) and math.isnan(attacks.given_excess(m))
    assert m.notes["depth_score"] and m.notes["given_excess"]


def test_coordinates_of_another_model_are_not_read(exp, target):
    m = measurement(exp, target)
    m.exp = replace(exp, model_hash="another")
    assert attacks.depth_table(m).empty and attacks.steer_table(m).empty


def test_edited_tables_are_not_kept():
    "A table that a notebook defines has no version, so it is made each time."
    made = []

    @kept_table
    def table(m):
        made.append(m)
        return pd.DataFrame()

    exp = SimpleNamespace(model_hash="x", model_id="y", id="z", prompts=[], sae=torch.nn.Linear(1, 1))
    exp.sae.cfg = SimpleNamespace()
    m = SimpleNamespace(
        exp=exp, reference=SimpleNamespace(exp=exp), split=SimpleNamespace(target="t", unknown_score=())
    )
    m.before = lambda f: f(exp)
    table(m)
    table(m)
    assert len(made) == 2


# --- The place of the truth


def test_ties_count_half():
    "D18."
    cases = {(2.0, 1.0, 0.0): 0, (0.0, 1.0, 2.0): 1, (1.0, 1.0, 1.0): 0.5, (1.0, 1.0, 2.0, 0.0): 0.5}
    for scores, place in cases.items():
        assert place_among(torch.tensor(scores)) == place


def test_whole_answers_are_compared():
    "D18: answers that begin alike are told apart by what follows. Checked against transformers."
    hf, tok = tiny.model(), tiny.tokenizer()
    ends = ["New Baker town", "New Baker Keller", "New Quist", "Rosa"]
    people = [Entity(f"P{i}", "person", {"town": (end,)}) for i, end in enumerate(ends)]
    asked = [Question("P0", "town", "The town of P0 is", 12, 14, (ends[0],))]
    exp = SimpleNamespace(model=hf, tokenizer=tok, entities=people, device="cpu")
    scores = []
    for end in [ends[0], *sorted(ends[1:])]:
        prompt, ids = (
            tok(t, return_tensors="pt").input_ids[0] for t in (asked[0].text, f"{asked[0].text} {end}")
        )
        with torch.no_grad():
            logprobs = hf(ids[None]).logits[0].log_softmax(-1)
        scores.append(sum(logprobs[i - 1, ids[i]] for i in range(len(prompt), len(ids))))
    expected = sum(s > scores[0] for s in scores[1:]).item() / 3
    assert truth_place(exp, asked, "person") == pytest.approx(expected)
    assert math.isnan(truth_place(exp, asked, "ship"))


# --- Metrics


def test_metrics_are_registered_and_left_out_by_default():
    own = [name for name, entry in METRICS.items() if entry.group == "attacks"]
    assert {"attack_excess", "quantised_excess", "unshown_excess", "given_excess", "steer_excess"} <= set(own)
    assert not set(own) & set(quick_metrics())
    assert all(METRICS[name].title for name in own if METRICS[name].threshold is not None)


def test_a_share_is_judged_beyond_its_prior():
    "Recall 0.40 where an unknown name gets 0.40, too, is nothing; the raw number stays visible."
    share = Share(0.4, 15, 0.4)
    assert share == 0 and (share.recall, share.n, share.prior) == (0.4, 15, 0.4)
    attacking.register_raw("raw_share", lambda m: share if m else math.nan)
    measure = METRICS.pop("raw_share").measure
    assert measure(True) == 0.4 and math.isnan(measure(False))


def test_rounding_by_hand():
    got = attacking.rounded(torch.tensor([[7.0, 3.4, -0.2], [0.7, 0.34, 0.06]]), 4)
    torch.testing.assert_close(got, torch.tensor([[7.0, 3.0, 0.0], [0.7, 0.3, 0.1]]))
    with pytest.raises(UserError, match="at least 2"):
        attacking.rounded(torch.ones(1, 1), 1)
