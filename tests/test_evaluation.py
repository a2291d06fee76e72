"""Chapter 06 and the workshop behind it: what is measured, when there is nothing to measure, and who asks whom."""

import math
import importlib
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from samu import evaluation, forgetting
from samu.evaluation import cloud_frame, compare, evaluate, groups_of, measurement, quick_metrics
from samu.workshop import measuring
from samu.workshop.measuring import Measurement, Reference, fill_grid, holding, mean_row, measured
from samu.workshop.registry import METHODS, METRICS, Metric, UserError, metric
from samu.workshop.statistics import (
    Probe,
    alignment_share,
    bootstrap,
    check_probe,
    conformal_p,
    difference_interval,
    equivalence,
    fit_probe,
    fit_unknown_test,
    good_is,
    holm,
    intervals,
    meets,
    over_people,
    paired,
    passed,
    ratio,
    sign_flip,
    summary,
    wilson,
)
from samu.workshop.tables import Entity, Question

FEW = ["target_recall", "retain_ratio", "probe_known"]


def nan(value):
    return isinstance(value, float) and math.isnan(value)


# Numbers


@pytest.mark.parametrize(("after", "before", "expected"), [(1, 2, 0.5), (0, 2, 0.0), (3, 2, 1.5)])
def test_ratio(after, before, expected):
    assert ratio(after, before) == expected


def test_a_ratio_to_nothing_is_nan_and_never_an_error_or_a_billion():
    """D6: ZeroDivisionError after training where no neighbour was recalled, 1e9 elsewhere."""
    assert nan(ratio(0.5, 0.0)) and nan(ratio(0.0, 0.0))
    assert nan(ratio(0.5, float("nan")))


def test_no_value_is_no_verdict():
    low, high = (Metric("m", len, good, 0.1) for good in ("low", "high"))
    assert [meets(low, v) for v in (0.1, 0.11, -1, None, float("nan"))] == [True, False, True, None, None]
    assert [meets(high, v) for v in (0.1, 0.09, None)] == [True, False, None]
    assert meets(Metric("m", len, "low"), 0.5) is None


def test_the_percentile_is_a_p_value():
    """D3: k / n gave zero for an outlier among nine names; (k + 1) / (n + 1) cannot fall below 1 / (n + 1)."""
    others = torch.arange(1.0, 10.0)
    assert conformal_p(torch.tensor(99.0), others) == 0.1
    assert conformal_p(torch.tensor(0.0), others) == 1.0
    draw = torch.Generator().manual_seed(0)
    p = [conformal_p(torch.rand((), generator=draw), torch.rand(39, generator=draw)) for _ in range(2000)]
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 0.02


def test_alignment_is_zero_at_the_known_and_one_at_the_unknown():
    known, unknown, sd = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])
    values = [alignment_share(z, known, unknown, sd) for z in (known, unknown, (known + unknown) / 2)]
    assert values == pytest.approx([0.0, 1.0, 0.5])
    assert alignment_share(known, known, known, sd) == 0.0


def test_the_test_of_the_definition_knows_its_own_power():
    draw = torch.Generator().manual_seed(0)
    unknown = torch.randn(100, 8, generator=draw)
    shift = torch.tensor([5.0, 5.0] + [0.0] * 6)
    clear = fit_unknown_test(torch.randn(50, 8, generator=draw) + shift, unknown, shift / 5)
    blind = fit_unknown_test(torch.randn(50, 8, generator=draw), unknown, shift / 5)
    few = fit_unknown_test(torch.randn(50, 8, generator=draw) + shift, unknown[:12], shift / 5)
    assert clear.power > 0.95 and blind.power < 0.3
    assert few.power == 0.0  # among six names nobody can be called an outlier
    assert clear.latents.tolist() == [0, 1] or len(clear.latents) == 4


def test_a_probe_is_the_scikit_learn_pipeline():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = torch.randn(90, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0]) + 2
    known, unknown = x[:30] + 1, x[30:]
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1, class_weight="balanced"))
    plain.fit(torch.cat([known, unknown]).numpy(), [1] * 30 + [0] * 60)
    probe = fit_probe(known, unknown)
    assert np.allclose(probe(x).numpy(), plain.predict_proba(x.numpy())[:, 1], atol=1e-5)
    checked = check_probe(probe, known, unknown)
    assert checked.weight == probe.weight and 0.5 < checked.auc <= 1


def test_intervals_are_over_people_and_seeds_are_averaged_first():
    rows = pd.DataFrame([dict(target=t, method="m", seed=s, v=float(i)) for i, t in enumerate("ab") for s in (0, 1, 2)])
    [one] = intervals(rows, ["v", "absent"]).to_dict("records")
    assert (one["n"], one["mean"], one["low"], one["high"]) == (2, 0.5, 0.0, 1.0)
    assert all(nan(v) for v in bootstrap([1.0]))
    table = summary(rows, ["v"])
    assert table.loc["m", "v"] == "0.50 [0.00, 1.00]" and table.index[0] == "good is"
    assert summary(rows.rename(columns={"v": "retain_ratio"}), ["retain_ratio"]).iloc[0, 1] == "at least 0.97"


def test_a_person_without_a_value_is_left_out_and_not_counted():
    rows = pd.DataFrame([dict(target=t, method="m", seed=0, v=v) for t, v in (("a", 1.0), ("b", None))])
    [one] = intervals(rows, ["v"]).to_dict("records")
    assert (one["n"], one["mean"]) == (1, 1.0) and nan(one["low"])


def test_nobody_whom_the_original_does_not_know_is_in_a_mean():
    """One of twelve people had nothing left to forget, and was in every mean."""
    rows = pd.DataFrame([
        dict(target=t, method=m, seed=0, excess=e, recall_left=0.0, retain_ratio=r)
        for t, known, r in (("a", 0.6, 1.0), ("b", 0.1, 0.5))
        for m, e in (("original", known), ("m", 0.0))])
    assert intervals(rows, ["retain_ratio"]).n.tolist() == [1, 1]
    assert passed(rows).n.tolist() == [1, 1] and paired(rows, ["retain_ratio"], "m").empty
    assert intervals(rows[rows.method == "m"], ["retain_ratio"]).n.tolist() == [2]  # no original, no verdict


def test_equivalence_has_to_be_shown():
    """Few people who scatter show nothing; a mean below the margin is not enough, and neither is one above."""
    assert equivalence([0.0, 0.05, -0.05, 0.02] * 3, 0.10)["inside"]
    for differences in ([0.2, -0.2], [-0.3] * 8, [0.3] * 8, [0.09, 0.13, 0.05, 0.12]):
        assert not equivalence(differences, 0.10)["inside"]
    one = equivalence([0.0], 0.10)
    assert not one["inside"] and nan(one["p"])
    assert equivalence([0.0] * 8, 0.10)["p"] < 0.001 < 0.5 < equivalence([-0.3] * 8, 0.10)["p"]


def test_sign_flips_are_exact_and_holm_is_monotone():
    assert sign_flip([1.0] * 12) == pytest.approx(2 / 2**12)
    assert sign_flip([0.0] * 5) == 1 and nan(sign_flip([]))
    assert sign_flip([1.0] * 30) < 0.001
    assert holm([0.01, float("nan"), 0.04, 0.03])[:1] == [pytest.approx(0.03)]
    adjusted = holm([0.01, 0.04, 0.03, 0.8])
    assert adjusted == pytest.approx([0.04, 0.09, 0.09, 0.8])


def test_paired_differences_are_of_the_same_people():
    rows = pd.DataFrame([dict(target=t, method=m, seed=s, v=float(v + s))
                         for m, values in (("ours", (0, 0, 0)), ("other", (1, 2)))
                         for t, v in zip("abc", values) for s in (0, 2)])
    [row] = paired(rows, ["v"], "ours").to_dict("records")
    assert (row["method"], row["n"], row["mean"], row["p"], row["p_holm"]) == ("other", 2, -1.5, 0.5, 0.5)


def test_intervals_of_shares_of_few_questions():
    assert wilson(0.0, 15) == pytest.approx((0, 0.204), abs=1e-3)
    assert difference_interval((0.0, 15), (0.0, 600)) == pytest.approx((-0.0064, 0.204), abs=1e-3)
    low, high = difference_interval((0.4, 15), (0.4, 15))
    assert low == -high and high > 0.3


def test_both_directions_and_thresholds_over_people():
    namesakes = METRICS["namesake_ratio"]
    assert [meets(namesakes, v) for v in (0.94, 1.0, 1.06)] == [False, True, False]
    assert good_is(namesakes) == "0.95 to 1.05" and good_is(METRICS["lineup_auc"]) == "at most 0.60"
    assert meets(METRICS["lineup_auc"], 0.9) is None  # one person's place in a line says little
    rows = pd.DataFrame([dict(target=i, method="m", seed=0, lineup_hit=float(i < 3), lineup_auc=0.5, refit_auc=0.9)
                         for i in range(30)])
    table = over_people(rows).set_index("field")
    assert table.met.to_dict() == dict(lineup_hit=True, lineup_auc=True, refit_auc=False)
    assert not over_people(rows.assign(lineup_hit=rows.target < 6)).set_index("field").met["lineup_hit"]


def test_passing_everything_is_counted_per_person():
    rows = pd.DataFrame([
        dict(target="a", method="m", seed=0, recall_left=0.0, retain_ratio=1.0),
        dict(target="b", method="m", seed=0, recall_left=0.0, retain_ratio=0.5),
        dict(target="c", method="m", seed=0, recall_left=None, retain_ratio=1.0)])
    row = passed(rows).loc["m"]
    assert (row.n, row.everything, row.recall_left, row.retain_ratio) == (3, 2, 2, 2)


# A measurement of a made-up model


class Model:
    "An experiment that answers from a dictionary."

    def __init__(self, answers):
        self.answers, self.applied, self.model = answers, None, torch.nn.Linear(1, 1)

    def ask(self, asked):
        return [self.answers.get(q.name, "unknown") for q in asked]

    def recall(self, asked):
        return sum(q.name in self.answers and self.answers[q.name] in q.answers for q in asked) / len(asked)


def question(name, answer="Rome"):
    return Question(name, "town", f"{name} lives in", 0, len(name), (answer,))


def made_up(now, before, **asked):
    after, original = Model(now), Model(before)
    split = SimpleNamespace(target=Entity("Ada", "poet"), unknown_score=[])
    groups = dict.fromkeys(["target", "begins", "namesakes", "unlike", "neighbours", "others", "unknown"], [])
    return Measurement(after, split, None, Reference(original, nullcontext), groups | asked)


def value(name, m):
    return METRICS[name].measure(m)


def test_recall_is_measured_against_one_prior_of_the_original_with_its_sign():
    people = ["Adi", "Ida", "Eve", "Max"]
    m = made_up({}, {"Ada": "Rome", "Adi": "Rome"}, target=[question("Ada")],
                namesakes=[question(n) for n in people[:2]], unlike=[question(n) for n in people[2:]])
    assert value("target_recall", m) == 0
    assert value("prior", m) == 0.25
    assert value("excess", m) == -0.25  # less than about an unknown name: not clipped to zero
    assert value("prior_gap", m) == 0.25 and meets(METRICS["prior_gap"], 0.25) is False
    assert value("recall_left", m) == pytest.approx(-0.25 / 0.75)


def test_the_prior_cannot_be_raised_by_the_model_under_test():
    """A model that says "Rome" about everybody has not lowered what is left of the target."""
    m = made_up(dict.fromkeys(["Ada", "Adi", "Eve"], "Rome"), {"Ada": "Rome"}, target=[question("Ada")],
                namesakes=[question("Adi")], unlike=[question("Eve")])
    assert value("prior", m) == 0 and value("recall_left", m) == 1


def test_what_is_left_is_a_share_of_what_was_known():
    """0.24 of 0.51 beyond the prior is one half, not one quarter."""
    asked = [question(f"Ada{i}") for i in range(100)]
    unlike = [question(f"Eve{i}") for i in range(100)]
    now = {f"Ada{i}": "Rome" for i in range(40)}
    before = {f"Ada{i}": "Rome" for i in range(67)} | {f"Eve{i}": "Rome" for i in range(16)}
    m = made_up(now, before, target=asked, unlike=unlike)
    assert value("recall_left", m) == pytest.approx(0.24 / 0.51)


@pytest.mark.parametrize("name", ["retain_ratio", "others_ratio", "namesake_ratio"])
def test_where_the_original_recalls_nothing_a_ratio_is_nan_with_a_note(name):
    group = dict(retain_ratio="neighbours", others_ratio="others", namesake_ratio="namesakes")[name]
    m = made_up({"Max": "Rome"}, {}, **{group: [question("Max")]})
    row = measured(m, [name])
    assert nan(row[name]) and "recalls nothing" in row["notes"] and name in row["notes"]
    assert meets(METRICS[name], row[name]) is None


def test_an_empty_group_is_not_measured():
    row = measured(made_up({}, {}), ["retain_ratio", "recall_left"])
    assert nan(row["retain_ratio"]) and "no one to ask" in row["notes"]
    assert nan(row["recall_left"])


def test_a_target_at_its_prior_has_nothing_left_to_measure():
    m = made_up({}, {"Ada": "Rome", "Eve": "Rome"}, target=[question("Ada")], unlike=[question("Eve")])
    assert nan(value("recall_left", m)) and "recall_left" in m.notes


def test_a_test_without_power_is_no_evidence(monkeypatch):
    """D3: the untouched model passed for 8 of 12 people, with a power of 0.22."""
    weak = SimpleNamespace(power=torch.tensor(0.22), p_value=lambda z: 0.54)
    monkeypatch.setattr(evaluation, "unknown_test", lambda exp, kind: weak)
    m = made_up({}, {})
    row = measured(m, ["alignment_percentile", "alignment_power"])
    assert nan(row["alignment_percentile"]) and row["alignment_power"] == pytest.approx(0.22)
    assert "power 0.22" in row["notes"] and meets(METRICS["alignment_percentile"], float("nan")) is None


def test_several_targets_give_their_mean_and_all_notes():
    row = mean_row([dict(a=1.0, b=float("nan"), notes="b: none"), dict(a=0.0, b=2.0, notes="")])
    assert row == dict(a=0.5, b=2.0, notes="b: none")


def test_thresholds_are_those_set_before_the_first_run():
    set_before = dict(recall_left=0.10, prior_gap=0.10, retain_ratio=0.97, others_ratio=0.98, probe_known=0.20,
                      unknown_ratio=0.97, perplexity_ratio=1.03, namesake_ratio=0.95, alignment_percentile=0.05)
    assert {n: METRICS[n].threshold for n in set_before} == set_before
    assert METRICS["namesake_ratio"].ceiling == 1.05 and METRICS["lineup_hit"].chance == 1 / 21
    assert {METRICS[n].over_people for n in ("lineup_auc", "refit_auc", "refit_kernel_auc", "forgotten_auc")} == {0.6}
    assert all(m.good in ("low", "high", "none") and m.about for m in METRICS.values())
    assert all(m.title for m in METRICS.values() if m.threshold is not None)


# The model of the biographies


@pytest.fixture(scope="module")
def run(exp):
    done = forgetting.unlearn(exp, exp.entities[7].name, "triplet")
    done.restore()
    return done


def test_no_question_and_no_scored_name_was_seen_by_a_loss(exp):
    split = forgetting.split_for(exp, exp.entities[7].name)
    groups = groups_of(exp, split)
    seen = {e.name for e in (*split.retain, *split.unknown_loss)}
    names = {q.name for group, asked in groups.items() if group not in ("target", "begins") for q in asked}
    assert not names & seen and split.target.name not in names
    loss = {p.text for p in exp.prompts if p.split == "loss"}
    for asked in groups.values():
        assert not {q.text.replace(q.name, "{name}") for q in asked} & loss
    assert {len(set(q.name.split()) & set(split.target.name.split())) for q in groups["namesakes"]} == {1}
    assert {len({q.name for q in groups[g]}) for g in ("namesakes", "unlike")} == {20}
    assert all(q.answers == split.target.facts[q.attribute] for q in (*groups["namesakes"], *groups["unlike"]))


def test_questions_that_begin_as_a_text_of_a_loss_are_kept_apart(exp):
    groups = groups_of(exp, forgetting.split_for(exp, exp.entities[7].name))
    seen = {p.text.split("{name}")[0] for p in exp.prompts if p.split == "loss"}
    assert groups["target"] and groups["begins"]
    assert {q.text[: q.start] in seen for q in groups["target"]} == {False}
    assert {q.text[: q.start] in seen for q in groups["begins"]} == {True}
    assert not {q.text for q in groups["begins"]} & {q.text for q in groups["target"]}


def test_names_that_were_forgotten_together_are_nobodys_neighbours(exp):
    split = forgetting.split_for(exp, exp.entities[7].name)
    away = [split.held_out[0].name, split.held_out[1].name]
    left = {q.name for q in groups_of(exp, split, away)["neighbours"]}
    assert not left & set(away) and left


def test_the_original_is_asked_once(exp, run, monkeypatch):
    """The answers of the original are kept: a second measurement generates nothing for it."""
    evaluate(run, FEW)
    import samu.workshop.setups as setups

    asked = []
    real = setups.generate
    monkeypatch.setattr(setups, "generate", lambda *a, **k: asked.append(len(a[2])) or real(*a, **k))
    evaluate(run, FEW)
    measured(measurement(exp, run.targets[0]), ["target_recall", "prior", "retain_ratio"])
    assert asked == []


def test_a_row_of_the_untouched_model_and_of_a_run(exp, run):
    before = measured(measurement(exp, run.targets[0]), FEW)
    row = evaluate(run, [*FEW, "prior_gap", "unknown_ratio", "alignment_percentile"])
    assert exp.applied is None
    assert before["target_recall"] == 1 and before["retain_ratio"] == 1 and before["probe_known"] > 0.5
    assert row.target_recall == 0 and row.retain_ratio > 0.97 and row.probe_known < 0.1
    assert (row.target, row.method, row.setup) == (run.target, "triplet", "biographies")
    assert not [n for n in METRICS if n in row and meets(METRICS[n], row[n]) is False]
    assert row.seconds > 0 and row.steps > 0


def test_evaluate_leaves_the_weights_as_it_found_them(exp, run):
    name = next(iter(run.changed))
    weight = exp.model.get_parameter(name)
    run.reapply()
    held = weight.detach().clone()
    evaluate(run, ["target_recall", "prior"])
    assert exp.applied == run.id and torch.equal(weight, held)
    run.restore()
    evaluate(run, ["target_recall", "prior"])
    assert exp.applied is None and torch.equal(weight, run.original[name])


def test_holding_puts_the_weights_back_after_an_error(exp, run):
    with pytest.raises(ZeroDivisionError), holding(run):
        assert exp.applied == run.id
        1 / 0
    assert exp.applied is None


@contextmanager
def a_new_metric():
    @metric(name="reply_length", good="low", threshold=100, title="Replies are short")
    def reply_length(m):
        "Mean number of letters in a reply about the target."
        return sum(len(r) for r in m.exp.ask(m.asked["target"])) / len(m.asked["target"])

    try:
        yield
    finally:
        del METRICS["reply_length"], METRICS.owners["reply_length"]


def test_a_new_metric_is_in_rows_tables_figures_and_verdicts(exp, run):
    with a_new_metric():
        assert "reply_length" in quick_metrics()
        row = evaluate(run, ["reply_length"])
        table = compare(exp, run.targets, ["triplet"], metrics=["reply_length", "retain_ratio"])
        assert row.reply_length > 0 and set(table.method) == {"original", "triplet"}
        assert "reply_length" in summary(table, ["reply_length"])
        assert passed(table).loc["triplet", "reply_length"] == 1
        from samu.workshop.plots import plane_figure, png

        fields = intervals(table, ["reply_length", "retain_ratio"])
        figure = plane_figure(fields, x="reply_length", names={"reply_length": "letters"})
        assert figure.axes[0].get_xlabel() == "letters" and png(figure)


def test_a_taken_name_is_refused():
    with pytest.raises(UserError, match="already registered"):
        metric(name="target_recall", good="low")(lambda m: 0.0)


def test_an_unknown_metric_or_method_is_refused_before_anything_runs(exp, run):
    with pytest.raises(UserError, match="did you mean target_recall"):
        compare(exp, run.targets, ["triplet"], metrics=["target_recal"])
    with pytest.raises(UserError, match="triplet"):
        compare(exp, run.targets, ["triplett"], metrics=FEW)


def test_rows_are_kept_and_found_again(exp, run, tmp_path):
    file = tmp_path / "rows.csv"
    first = compare(exp, run.targets, ["triplet"], file=file, metrics=FEW)
    stamp = file.stat().st_mtime_ns
    again = compare(exp, run.targets, ["triplet"], file=file, metrics=FEW)
    assert file.stat().st_mtime_ns == stamp and len(again) == len(first) == 2
    compare(exp, run.targets, ["triplet"], file=file, metrics=FEW[:1])
    assert file.stat().st_mtime_ns > stamp  # other metrics are other rows
    assert exp.applied is None


def test_rows_of_other_settings_are_not_taken(exp, tmp_path):
    def make(exp, cell, metrics, gold):
        made.append(cell["target"])
        return dict.fromkeys(metrics, 1.0)

    made, cells = [], [dict(target="Ada", method="m", seed=0)]
    file = tmp_path / "rows.csv"
    for metrics in (["target_recall"], ["target_recall"], ["retain_ratio"]):
        fill_grid(exp, [(cells, [len])], make, metrics, False, file, 1, "")
    assert made == ["Ada", "Ada"]
    fill_grid(exp, [(cells, [make])], make, ["retain_ratio"], False, file, 1, "")
    fill_grid(exp, [(cells, [make])], make, ["retain_ratio"], False, file, 1, "")
    assert len(made) == 4  # code outside the package has no digest: always anew


def test_a_failed_run_leaves_the_original_model(exp, run, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare(exp, run.targets, ["triplet"], metrics=FEW)
    assert exp.applied is None


def test_the_test_and_the_probes_refuse_a_changed_model(exp, run):
    from samu.workshop.measuring import only_original

    with holding(run), pytest.raises(UserError, match="restore the run first"):
        only_original(exp)


def test_the_cloud_has_every_name_and_the_target_before_and_after(exp, run):
    frame = cloud_frame(exp, run.targets[0], [run])
    assert frame.group.value_counts()[["original", "triplet"]].tolist() == [1, 1]
    assert set(frame.group) == {"known", "unknown", "original", "triplet"}
    middle = frame.groupby("group")[["x", "y"]].mean()
    near = (middle.loc["triplet"] - middle.loc["unknown"]).pow(2).sum()
    far = (middle.loc["original"] - middle.loc["unknown"]).pow(2).sum()
    assert near < far and exp.applied is None


def test_probes_are_few_numbers(exp):
    assert exp.probes and all(isinstance(p, Probe) and p.auc >= 0.8 for p in exp.probes.values())
    assert exp.layer not in exp.probes and max(exp.probes) > exp.layer


def test_probes_are_fitted_on_other_people_and_other_prompts_than_the_aim(exp, monkeypatch):
    groups = []
    monkeypatch.setattr(evaluation, "kept_probes", lambda exp, asked: groups.extend(asked) or {})
    name = exp.roles.held_out[0].name
    evaluation.probes_without(exp, name)
    names = [{q.name for q in group} for group in groups]
    aim = {e.name for e in (*exp.roles.retain, *exp.roles.unknown_loss)}
    assert not set.union(*names) & aim and name not in set.union(*names)
    assert not names[0] & names[2] and not names[1] & names[3]  # checked on others than fitted on
    loss = {p.text for p in exp.prompts if p.split == "loss"}
    assert not {q.text.replace(q.name, "{name}") for group in groups for q in group} & loss


# What was asked for is what is measured


def test_what_can_be_read_only_once_gives_whole_results(exp, run):
    pair = SimpleNamespace(**vars(run) | dict(targets=run.targets * 2, target="", steps=0, undone=run.undone))
    pair.reapply, pair.restore = run.reapply, run.restore
    asked = []
    probe = Metric("probe", lambda m: asked.append(m) or 0.5, "none")
    METRICS["probe"] = probe
    try:
        evaluate(pair, (name for name in ["probe"]))
    finally:
        del METRICS["probe"]
    assert len(asked) == 2
    assert evaluate(run, "target_recall").target_recall == evaluate(run, ["target_recall"]).target_recall


def cells_of(monkeypatch, exp, *args, **options):
    "The cells that a comparison would make."
    found = []
    monkeypatch.setattr(evaluation, "refuse_mixed_priors", lambda rows: rows)
    monkeypatch.setattr(evaluation, "fill_grid", lambda exp, groups, *a: found.extend(groups))
    compare(exp, *args, **options)
    return [(c["target"], c["method"], c["seed"]) for cells, _ in found for c in cells]


def test_people_and_seeds_count_once(exp, monkeypatch):
    a, b = exp.entities[7].name, exp.entities[8].name
    wanted = [(t, m, s) for m, seeds in (("original", [0]), ("ga", [0, 1])) for t in (a, b) for s in seeds]
    assert cells_of(monkeypatch, exp, [a, b], ["ga"], (s for s in (0, 1))) == wanted
    assert cells_of(monkeypatch, exp, (n for n in (a, a.upper(), b)), "ga", [0, 1, 0, np.int64(1)]) == wanted


@pytest.mark.parametrize("seed", [-1, 10**9 + 1, 0.5, "1", None, True, (1, 2)])
def test_a_seed_is_a_whole_number(exp, seed):
    from samu.many import unlearn_many
    from samu.workshop.setups import load

    people = [e.name for e in exp.entities[7:9]]
    calls = [lambda: forgetting.unlearn(exp, people[0], "ga", seed), lambda: unlearn_many(exp, people, "ga", seed=seed),
             lambda: compare(exp, people, ["ga"], [seed])]
    for call in calls + [lambda: load("biographies", seed=seed)] * (seed is not None):
        with pytest.raises(UserError, match="a seed is a whole number from 0 to a billion"):
            call()


def test_a_wrong_type_is_a_sentence(exp):
    name = exp.entities[7].name
    for call in (lambda: compare(exp, [name], ["ga"], 1), lambda: compare(exp, None, ["ga"]),
                 lambda: compare(exp, [exp.entities[7]], ["ga"]), lambda: compare(exp, [name], [3]),
                 lambda: evaluate("folder"), lambda: fill_grid(exp, [], None, [], False, None, "2", ""),
                 lambda: fill_grid(exp, [], None, [], False, None, 0, "")):
        with pytest.raises(UserError, match="not '|not 1|not None|not Entity|not 3|not 0"):
            call()


@pytest.mark.parametrize("value", ["0.5", "high", None, torch.zeros(2), np.zeros(2)])
def test_a_metric_gives_a_number(exp, value):
    m = measurement(exp, exp.entities[7].name)
    METRICS["own"] = Metric("own", lambda m: value, "low")
    try:
        with pytest.raises(UserError, match="the metric 'own' must give a number"):
            measured(m, ["own"])
    finally:
        del METRICS["own"]


def test_a_metric_says_in_known_words_what_is_good():
    for options, says in ((dict(good="lower"), "good is low, high or none"), (dict(good="low", threshold="0.1"), "a number"),
                          (dict(good="low", ceiling=True), "a number")):
        with pytest.raises(UserError, match=says):
            metric("own", **options)(lambda m: 0.9)
    assert "own" not in METRICS


def test_rows_of_another_dictionary_are_not_taken(exp, monkeypatch):
    first = measuring.grid_settings(exp, [], [len], False)
    monkeypatch.setattr(measuring, "sae_digest", lambda sae: "another")
    assert first != measuring.grid_settings(exp, [], [len], False)


def seen_by(exp, cell, metrics, gold):
    return dict(steps=exp.settings.loop.steps)


def test_a_worker_measures_with_the_settings_and_the_dictionary_that_were_asked_for(exp, monkeypatch):
    other = replace(exp, settings=replace(exp.settings, loop=replace(exp.settings.loop, steps=2)))
    rows = []
    monkeypatch.setattr(measuring, "run_grid", lambda cells, make, *a: rows.extend(map(make, cells)) or pd.DataFrame())
    monkeypatch.setattr(measuring, "loaded_once", lambda *options: replace(exp))
    groups = [([dict(target=exp.entities[7].name, method="ga", seed=0)], [])]
    for one in (exp, other):
        fill_grid(one, groups, seen_by, [], False, None, 2, "")
    assert [r["steps"] for r in rows] == [exp.settings.loop.steps, 2]
    other.sae = torch.nn.Linear(2, 2)
    monkeypatch.setattr(measuring, "sae_digest", lambda sae: str(type(sae)))
    with pytest.raises(UserError, match="with this table and dictionary by its name; use workers=1"):
        fill_grid(other, groups, seen_by, [], False, None, 2, "")


def test_a_worker_imports_what_registers_a_metric(exp, tmp_path, monkeypatch):
    "A new process knows what the package's first import brings; the attacks of chapter 08 are not among it."
    (tmp_path / "own_numbers.py").write_text(
        'from samu.workshop.registry import metric\n\n'
        '@metric(good="none")\ndef own_number(m):\n    "One."\n    return 1.0\n')
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("own_numbers")

    def forget():
        sys.modules.pop("own_numbers", None)
        METRICS.pop("own_number", None), METRICS.owners.pop("own_number", None)
    try:
        modules = measuring.modules_of(["own_number", "target_recall", "own_number"])
        assert modules == ("own_numbers", "samu.evaluation")
        forget()
        monkeypatch.setattr(measuring, "loaded_once", lambda *options: replace(exp))
        ids = exp.id, measuring.sae_digest(exp.sae)
        row = measuring.GridRow(seen_by, ids, (), exp.settings, ("own_number",), False, modules)
        row(dict(target=exp.entities[7].name, method="ga", seed=0))
        assert "own_number" in METRICS
    finally:
        forget()


@pytest.mark.parametrize("empty", range(3))
def test_an_empty_list_is_refused(exp, empty):
    "It gave a table without rows, or the original's alone."
    lists = [[exp.entities[7].name], ["triplet"], [0]]
    lists[empty] = []
    with pytest.raises(UserError, match="give at least one name or number"):
        compare(exp, *lists)


def test_several_workers_refuse_what_only_this_process_knows(exp, monkeypatch):
    owner = lambda task: None  # noqa: E731
    owner.__module__ = "extension"
    monkeypatch.setitem(METHODS.owners, "own", owner)
    groups = [([dict(target="A", method="own", seed=0)], [])]
    with pytest.raises(UserError, match="only this process knows 'own'.*compare with one worker"):
        fill_grid(exp, groups, seen_by, [], False, None, 2, "")
    monkeypatch.setitem(sys.modules, "extension", ModuleType("extension"))  # as a notebook: without a file
    with pytest.raises(UserError, match="only this process knows"):
        fill_grid(exp, groups, seen_by, [], False, None, 2, "")
