"""Chapter 07: published losses against their formulas, and methods that share nothing and leave nothing behind."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from house import ROOT
from samu import baselines
from samu.baselines import (
    clamp,
    crisp_loss,
    dpo_loss,
    npo_loss,
    random_direction,
    rmu_loss,
    salient_latents,
    simnpo_loss,
    told,
)
from samu.evaluation import compare, evaluate
from samu.forgetting import make_task, triplet, unlearn
from samu.workshop.clamping import clamped
from samu.workshop.loop import configure, method_named
from samu.workshop.registry import METHODS, UserError, method
from samu.workshop import tuning
from samu.workshop.tuning import choice, configurations, score, tune, tuning_rows

PUBLISHED = "ga ga_tuned graddiff npo simnpo idk_dpo refusal rmu crisp triplet_random".split()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def random_numbers(n, scale=5.0, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


# The formulas, written out


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_npo_is_the_published_formula(beta):
    """Zhang et al., 2024, eq. 3: -(2 / beta) E[log sigmoid(-beta log(pi(y|x) / pi_ref(y|x)))]."""
    now, before = -random_numbers(30).abs(), -random_numbers(30, seed=1).abs()
    expected = [-2 / beta * math.log(sigmoid(-beta * math.log(math.exp(a) / math.exp(b)))) for a, b in zip(now, before)]
    assert npo_loss(now, before, beta).item() == pytest.approx(sum(expected) / 30, rel=1e-9)


@pytest.mark.parametrize("beta", [0.1, 2.5])
def test_simnpo_is_the_published_formula(beta):
    """Fan et al., 2024, eq. 4, with gamma = 0: -(2 / beta) E[log sigmoid(-(beta / |y|) log pi(y|x) - gamma)]."""
    log_p, length = -random_numbers(30).abs(), torch.randint(1, 9, (30,))
    expected = [-2 / beta * math.log(sigmoid(-beta / n * a)) for a, n in zip(log_p.tolist(), length.tolist())]
    assert simnpo_loss(log_p, length, beta).item() == pytest.approx(sum(expected) / 30, rel=1e-9)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_is_the_published_formula(beta):
    """Rafailov et al., 2023, eq. 7, with the refusal as winner, times 2 / beta as in NPO and open-unlearning."""
    win, win_0, lose, lose_0 = (-random_numbers(30, seed=s).abs() for s in range(4))
    margins = [(a - b) - (c - d) for a, b, c, d in zip(*(x.tolist() for x in (win, win_0, lose, lose_0)))]
    expected = sum(-math.log(sigmoid(beta * m)) for m in margins) / 30 * 2 / beta
    assert dpo_loss(win - win_0, lose - lose_0, beta).item() == pytest.approx(expected, rel=1e-9)


def test_rmu_is_the_published_formula():
    """Li et al., 2024: mean over tokens and coordinates of |h - c u|^2, u uniform in [0, 1), scaled to length 1."""
    h = random_numbers(12).reshape(4, 3)
    u = random_direction(3).double()
    c = 6.5
    expected = sum((h[i, j] - c * u[j]) ** 2 for i in range(4) for j in range(3)) / 12
    assert rmu_loss(h, c * u).item() == pytest.approx(expected.item(), rel=1e-9)
    wide = random_direction(10_000)
    assert wide.norm().item() == pytest.approx(1, abs=1e-5) and wide.min() >= 0
    assert wide.sum().item() / 100 == pytest.approx(math.sqrt(3) / 2, abs=0.01)


def test_crisp_is_the_authors_formula():
    """Mean over places where a latent was on of its activation after a shift by alpha |mean z|, alpha = 5."""
    z, mean_z, was_on, threshold = random_numbers(12).reshape(4, 3), random_numbers(4), torch.ones(4, 3), torch.full((3,), 0.7)
    was_on[0, 0] = 0
    shifted = [(z[i, j] + 5 * abs(mean_z[i])).item() for i in range(4) for j in range(3) if was_on[i, j]]
    on = [x for x in shifted if x > 0.7]
    assert crisp_loss(z, mean_z, was_on, threshold).item() == pytest.approx(sum(on) / len(on), rel=1e-6)
    assert crisp_loss(z - 1000, mean_z, was_on, threshold).item() == 0


def test_slopes_of_the_losses_die_out_in_the_papers_order():
    log_p = torch.linspace(0, -60, 61).requires_grad_()
    npo = torch.autograd.grad(61 * npo_loss(log_p, torch.zeros(61)), log_p)[0]
    simnpo = torch.autograd.grad(61 * simnpo_loss(log_p, torch.ones(61)), log_p)[0]
    assert npo[0] == pytest.approx(1) and 0.4 < npo[4] < 1 and npo[-1] < 0.01
    assert simnpo[0] == pytest.approx(1) and simnpo[4] < 1e-3


def test_clamping_keeps_what_the_dictionary_does_not_explain():
    sae = SimpleNamespace(encode=lambda h: torch.relu(h[..., :2]), decode=lambda a: torch.cat([a, 0 * a[..., :1]], -1))
    edit = clamped(sae, torch.tensor([0]), torch.tensor([-3.0]))
    assert edit(torch.tensor([[2.0, 1.0, 7.0]])).tolist() == [[-3.0, 1.0, 7.0]]
    assert edit(torch.tensor([[-2.0, 1.0, 7.0]])).tolist() == [[-2.0, 1.0, 7.0]]


# The methods on a task


@pytest.fixture(scope="module")
def target(exp):
    return exp.entities[7].name


def prepared(exp, target, name):
    method = method_named(name)
    task = make_task(exp, [target], configure(exp.settings, method, {}), 0)
    with torch.no_grad():
        return task, method.prepare(task)


@pytest.fixture(scope="module")
def task(exp, target):
    return prepared(exp, target, "npo")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_method_is_registered_with_its_formula_in_a_line(name):
    found = method_named(name)
    assert found.name == name and found.about and found.stops == (name == "triplet_random")


@pytest.mark.parametrize(("name", "expected"), [("npo", 20 * math.log(2)), ("idk_dpo", 20 * math.log(2))])
def test_before_training_nothing_has_moved(exp, target, name, expected):
    assert prepared(exp, target, name)[1](0).item() == pytest.approx(expected, abs=1e-3)


def test_losses_on_answers_are_those_of_the_formulas(task):
    log_p, tokens = task.answer_logprobs()
    assert len(log_p) == len(task.asked) == len(tokens) and (tokens >= 1).all() and (log_p < 0).all()
    assert METHODS["ga"].prepare(task)(0).item() == pytest.approx((log_p.sum() / tokens.sum()).item(), abs=1e-5)
    assert METHODS["simnpo"].prepare(task)(0).item() == pytest.approx(simnpo_loss(log_p, tokens).item(), abs=1e-4)


def test_target_texts_begin_with_the_name(exp, target, task):
    words = [exp.tokenizer.decode(b.ids[b.batch_index[0], b.position[:2]]) for b in told(task)]
    assert words and all(w == target for w in words)


def test_salient_latents_fire_on_the_target_and_not_on_the_rest(exp, task):
    with torch.no_grad():
        chosen, strength = salient_latents(task, told(task))
        rare, _ = salient_latents(task, told(task), rare=0.01)
        kept = torch.cat([exp.sae.encode(task.read(b)) for b in task.retain])
    assert len(chosen) == len(strength) <= 10 and (strength > 0).all()
    assert set(rare.tolist()) <= set(range(exp.sae.cfg.d_sae))
    assert ((kept[:, rare] > 0).float().mean(0) <= 0.01).all()


def test_random_latents_are_alive_and_not_the_selected_ones(exp, target):
    task, loss = prepared(exp, target, "triplet_random")
    own = triplet(task.names_now(task.forget), task.aim, task.frozen).item()
    aim = loss.__closure__
    drawn = next(c.cell_contents for c in aim if hasattr(c.cell_contents, "selected")).selected
    assert len(set(drawn.tolist())) == len(task.aim.selected)
    assert not set(drawn.tolist()) & set(task.aim.selected.tolist())
    assert loss(0).item() != own


def test_methods_share_nothing(exp, target):
    """D17: rmu and crisp left `told` on the task for each other. A task has no notes, and each closure its own texts."""
    task, rmu = prepared(exp, target, "rmu")
    fields = set(vars(task))
    first = rmu(0).item()
    with torch.no_grad():
        METHODS["crisp"].prepare(task)
    assert set(vars(task)) == fields and not hasattr(task, "notes")
    assert rmu(0).item() == first


def test_clamping_is_a_run_without_a_model(exp, target, tmp_path):
    run = clamp(exp, target)
    assert exp.applied == run.id
    forgot = evaluate(run, ["target_recall", "retain_ratio"])
    with pytest.raises(UserError, match="no model to save"):
        run.save(tmp_path / "model")
    run.restore()
    assert exp.applied is None and not run.handles
    assert forgot.target_recall < 1 and exp.recall(measured_questions(exp, target)) == 1


def measured_questions(exp, target):
    from samu.evaluation import measurement

    return measurement(exp, target).asked["target"]


def test_zero_strength_and_no_latents(exp, target, monkeypatch):
    empty = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    monkeypatch.setattr(baselines, "salient_latents", lambda *a, **k: empty)
    with pytest.raises(UserError, match="no latent is salient"):
        clamp(exp, target)
    assert exp.applied is None


# A baseline of one's own, and the sweep


def test_a_new_baseline_in_ten_lines_is_found_everywhere(exp, target, tmp_path):
    @method("floor", retain="answers", retain_weight=1.0, blocks="all", steps=6, stops=False, lr_times=0.3)
    def floor(task):
        "Answers pushed down to a probability of 0.01, and no further."

        def loss(step):
            log_p, tokens = task.answer_logprobs()
            return (log_p - math.log(0.01)).clamp(min=0).mean()

        return loss

    try:
        run = unlearn(exp, target, "floor")
        run.restore()
        table = compare(exp, [target], ["floor"], metrics=["target_recall", "retain_ratio"])
        assert (run.method, run.steps) == ("floor", 6)
        assert table.method.tolist() == ["original", "floor"]
        from samu.workshop.plots import bars_figure, png

        assert png(bars_figure(table.set_index("method")[["retain_ratio"]], "own baseline", "1 person"))
        grid = tuning_rows(exp, [target], {"floor": [dict(lr=0.1 * exp.settings.loop.lr)]})
        assert grid.method.tolist() == ["floor"] and 0 <= grid.score[0] <= 1.1
    finally:
        del METHODS["floor"], METHODS.owners["floor"]


def test_the_table_of_configurations_goes_on_where_it_stopped(exp, target, tmp_path, monkeypatch):
    file, made = tmp_path / "tuning.csv", []
    row = dict(excess=0.0, retain_ratio=1.0, unknown_ratio=1.0, namesake_ratio=float("nan"), perplexity_ratio=1.0,
               seconds=1.0)

    class Done:
        def restore(self):
            pass

    monkeypatch.setattr(tuning, "unlearn", lambda exp, t, m, seed, keep, lr: made.append((m, lr)) or Done())
    monkeypatch.setattr(tuning, "evaluate", lambda run, metrics, gold: pd.Series(row))
    monkeypatch.setattr("samu.workshop.measuring.grid_settings", lambda *a: "settings")
    tuning_rows(exp, [target], {"npo": [dict(lr=0.1)]}, file)
    rows = tuning_rows(exp, [target], {"npo": [dict(lr=0.1), dict(lr=1.0)]}, file)
    assert made == [("npo", 0.1), ("npo", 1.0)]
    assert rows.score.tolist() == [1.0, 1.0] and "seconds" in rows


def test_every_method_chooses_among_the_same_points(exp):
    names = ("triplet", "two_sided", "npo", "refusal", "rmu", "crisp", "ga_tuned")
    found = {m: configurations(exp, m) for m in names}
    assert {len(c) for c in found.values()} == {25} and len(configurations(exp, "clamp")) == 25
    assert len({tuple((c["lr"], c["steps"]) for c in tried[1:]) for tried in found.values()}) == 1
    times = {m: [c["retain_weight"] / tried[0]["retain_weight"] for c in tried] for m, tried in found.items()}
    assert all(0.09 < t < 11 for ts in times.values() for t in ts)
    assert {c["retain"] for c in found["npo"]} == {"answers", "kl"}
    assert {c["retain"] for c in found["triplet"]} == {"residual"}
    for name, (own, *_) in found.items():
        plain = replace(exp, settings=replace(exp.settings, tuned={}))
        config = configure(plain.settings, method_named(name), {})
        assert own == {k: getattr(config, k) for k in own}


def test_the_setup_runs_every_method_with_what_chapter_07_chose(exp):
    rows = pd.read_csv(ROOT / "nbs/results/methods.csv", comment="#").drop_duplicates(["method", "config"])
    chosen = {m: json.loads(c) for m, c in zip(rows.method, rows.config) if m != "clamp"}
    assert len(chosen) == len(rows) - 1 >= 14
    for name, config in chosen.items():
        used = configure(exp.settings, method_named(name), {})
        assert config == {k: getattr(used, k) for k in config}, name


def test_the_score_is_the_product_of_what_is_gone_and_what_is_left():
    row = dict(excess=0.1, retain_ratio=0.9, unknown_ratio=1.2, namesake_ratio=1.25, perplexity_ratio=2.0)
    assert math.isclose(score(row), 0.9 * 0.9 * 0.75 * 0.5)
    assert math.isclose(score(row | dict(namesake_ratio=float("nan"), excess=-0.1)), 0.9 * 0.9 * 0.5)
    assert score(row | dict(perplexity_ratio=float("nan"))) == 0.0


def test_tuning_halves_and_keeps_its_own_unless_another_is_clearly_better(exp, monkeypatch):
    scores, asked = {0.004: 0.8, 0.0026: 0.805}, []

    def made(exp, targets, grid, **table):
        [(name, tried)] = grid.items()
        asked.append((len(targets), len(tried)))
        return pd.DataFrame([dict(config=json.dumps(c), target=t, score=scores.get(c["lr"], 0.1))
                             for c in tried for t in targets])

    monkeypatch.setattr(tuning, "tuning_rows", made)
    own = configurations(exp, "npo")[0]
    scores[own["lr"]] = 0.8
    assert tune(exp, list("abcdef"), "npo") == own
    assert asked[0] == (1, 25) and asked[1][0] == 3 and asked[2][0] == 6 and asked[2][1] <= 4
    scores[0.0026] = 0.85
    assert tune(exp, list("abcdef"), "npo")["lr"] == 0.0026


def test_a_method_that_nobody_has_registered_is_refused_with_the_nearest_name(exp, target):
    with pytest.raises(UserError, match="npo"):
        unlearn(exp, target, "npoo")


# The tables in the repository


RESULTS = Path(__file__).parents[1] / "nbs/results"


def tables():
    return [pd.read_csv(RESULTS / f"{n}.csv", comment="#") for n in ("tuning", "methods")]


def test_tuning_and_test_people_differ():
    searched, tested = tables()
    reported = set(tested.target) | set(pd.read_csv(RESULTS / "biographies.csv", comment="#").target)
    assert not set(searched.target) & reported and searched.target.nunique() >= 6


def test_every_method_had_24_configurations_and_is_reported_with_what_it_chose(exp):
    searched, tested = tables()
    for name, rows in searched.groupby("method"):
        assert rows.config.nunique() >= 24, name
        own, last = configurations(exp, name)[0], rows.groupby("config").filter(lambda g: g.target.nunique() == 6)
        assert set(tested[tested.method == name].config) == {json.dumps(choice(last, own))}, name
