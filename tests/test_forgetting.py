"Chapters 00, 05 and 09, and the workshop's loop: losses by hand, settings, what is kept, and what comes back."
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import samu
from samu.entities import questions, split_for
from samu.forgetting import Aim, aim_for, make_task, method_named, train, triplet, unknown_distance, unlearn
from samu.recall_side import injections_for, recall_loss
from samu.residuals import NameResiduals
from samu.workshop.batching import answer_spans, batches, text_spans
from samu.workshop.lm import weights_kept
from samu.workshop.loop import History, SiteReader, configure, load_methods, run_key
from samu.workshop.privacy import read_card
from samu.workshop.registry import METHODS, OBJECTIVES, RETAIN, Method, UserError
from samu.workshop.setups import LoopConfig, Settings, biographies_settings, load
from samu.workshop.targets import FrozenActivations

TARGET = "Bipo Gifen"
UNKNOWN_AT, KNOWN_AT = torch.tensor([[0., 1.]] * 2), torch.tensor([[2., 0.]] * 2)


@pytest.fixture(scope="module")
def task(exp):
    return make_task(exp, [TARGET], exp.settings.loop)


@pytest.fixture(autouse=True)
def registries():
    "What a test registers is gone afterwards, and what chapters register stays."
    load_methods()
    before = [(r, dict(r), dict(r.owners)) for r in (OBJECTIVES, METHODS, RETAIN)]
    yield
    for r, entries, owners in before:
        r.clear()
        r.update(entries)
        r.owners = owners


def weights_of(exp):
    return {k: p.detach().clone() for k, p in exp.model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- losses by hand

def tiny_aim():
    "A dictionary of two latents that copies its input."
    sae = SimpleNamespace(W_enc=torch.eye(2), W_dec=torch.eye(2), b_enc=torch.zeros(2), cfg=SimpleNamespace(),
                          process_sae_in=lambda h: h, encode=torch.relu)
    return Aim(mu_unknown=UNKNOWN_AT, sd_unknown=torch.ones(2, 2), mu_known=KNOWN_AT, on_unknown=UNKNOWN_AT,
               mean_residual=UNKNOWN_AT, sae=sae, selected=torch.arange(2), n_known=1, scale=torch.ones(2))


@pytest.mark.parametrize("name, at_known", [
    ("triplet", 6.), ("hinge", 3.), ("match", 2.5), ("residual_target", 2.5), ("mean_residual", 2.5), ("stand_in", 2.5),
    ("stand_in_residual", 2.5), ("triplet+match", 8.5)])
def test_objectives_by_hand(name, at_known):
    frozen = FrozenActivations(own=KNOWN_AT[:1], stand_in=UNKNOWN_AT[:1])
    task = SimpleNamespace(at_site=lambda f: f(residuals, tiny_aim(), frozen))
    for place, value in ((KNOWN_AT, at_known), (UNKNOWN_AT, 0.)):
        residuals = NameResiduals(place[:1], torch.tensor([0]), torch.tensor([0]))
        assert method_named(name).prepare(task)(0).item() == pytest.approx(value, abs=1e-6)


def test_earlier_tokens_have_their_own_row():
    aim = replace(tiny_aim(), mu_unknown=torch.tensor([[0., 1.], [5., 5.]]))
    residuals = NameResiduals(torch.tensor([[0., 1.], [5., 5.]]), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert OBJECTIVES["match"](residuals, aim, None).item() == 0


@pytest.mark.parametrize("retain", ["residual", "answers"])
def test_retain_losses_ignore_padding(exp, task, retain):
    texts = ["The quiet river waits near the old house.", "The bell rings."]
    spans = text_spans(texts) if retain == "residual" else answer_spans([(t[:-6], t[-6:-1]) for t in texts])
    [batch] = batches(exp.tokenizer, spans)
    assert not batch.mask.all()
    if retain == "residual":
        batch.frozen = torch.zeros(len(batch.item), exp.d_model)
    first = RETAIN[retain].loss(task, batch)
    other = replace(batch, ids=torch.where(batch.mask, batch.ids, 7))
    other.frozen = batch.frozen
    torch.testing.assert_close(RETAIN[retain].loss(task, other), first)


def test_no_answer_has_probability_one_because_it_was_cut(exp):
    long = " ".join(["river"] * 1200)
    with pytest.raises(UserError, match="would be cut"):
        batches(exp.tokenizer, answer_spans([(long, "unknown")]))


def test_recall_loss_of_a_uniform_model(exp, task):
    with torch.no_grad():
        injections = injections_for(task)
        with exp.model.lm_head.register_forward_hook(lambda head, h, out: out * 0):
            loss = recall_loss(task, injections, 0)
    assert loss.item() == pytest.approx(-torch.log1p(torch.tensor(-1 / len(exp.tokenizer))).item(), abs=1e-5)
    assert all(i.at_name.any(1).all() for i in injections)


# -- what a task holds

def test_nothing_that_measures_is_in_a_task(exp, task):
    split = split_for(exp, TARGET)
    fields = ("forget", "validate", "answers", "retain", "retain_answers")
    texts = [t for f in fields for b in getattr(task, f) for t in exp.tokenizer.batch_decode(b.ids)]
    never = {e.name for e in (*split.held_out, *split.unknown_score)}
    assert not [t for t in texts if any(n in t for n in never)]
    assert not [t for t in texts if any(q.text in t for q in questions([split.target], exp.prompts))]
    kept = [t for b in task.retain + task.retain_answers for t in exp.tokenizer.batch_decode(b.ids)]
    assert len(kept) > 1000 and not [t for t in kept if TARGET in t]


def test_only_last_tokens_lose_what_looks_known(exp, task, monkeypatch):
    line = exp.name_line
    line = replace(line, start=line.start - 10 * line.direction)  # so that every name lies beyond it
    monkeypatch.setattr(exp, "name_line", line)
    removed = make_task(exp, [TARGET], replace(exp.settings.loop, remove_known=True))
    last = torch.cat([b.from_end for b in task.forget]) == 0
    a, b = task.frozen.stand_in, removed.frozen.stand_in
    assert torch.equal(a[~last], b[~last]) and torch.equal(task.frozen.own, removed.frozen.own)
    assert (line.project_known(a[last]) > 1).all()
    assert torch.allclose(line.project_known(b[last]), torch.zeros(()), atol=1e-3)


def test_frozen_residuals_only_of_texts_that_a_step_draws(exp):
    task = make_task(exp, [TARGET], replace(exp.settings.loop, steps=2, retain_batches=1, batch_tokens=200))
    with weights_kept(exp.model):
        train(task, method_named("triplet"), SimpleNamespace(lap=lambda: None))
    assert sum(b.frozen is not None for b in task.retain) <= 2 < len(task.retain)


def test_reading_from_the_first_trained_block_changes_nothing(exp, task):
    plain, quick = (SiteReader(exp, replace(exp.settings.loop, blocks=b)) for b in ((0, 1), (1, 1)))
    gradients, weight = [], exp.model.model.layers[1].mlp.down_proj.weight
    weight.requires_grad_(True)
    try:
        for read in (plain, quick, quick):
            with torch.enable_grad():
                loss = read(task.retain[0]).pow(2).mean()
                gradients.append((loss.item(), *torch.autograd.grad(loss, [weight])))
    finally:
        weight.requires_grad_(False)
    for loss, gradient in gradients[1:]:
        assert loss == gradients[0][0] and torch.equal(gradient, gradients[0][1])


# -- settings

def test_precedence_of_settings():
    settings = Settings(loop=LoopConfig(lr=0.01, steps=30), tuned={"b": dict(steps=7, lr=0.5)})
    a, b = (Method(n, lambda task: None, steps=60, blocks="all", lr_times=0.1) for n in "ab")
    plain = Method("plain", lambda task: None)
    assert [configure(settings, m, {}).steps for m in (plain, a, b)] == [30, 60, 7]
    assert [configure(settings, m, {}).lr for m in (plain, a, b)] == pytest.approx([0.01, 0.001, 0.5])
    assert [configure(settings, m, {}).blocks for m in (plain, a)] == ["site", "all"]
    narrow = Settings(loop=LoopConfig(blocks=(1, 2), weights="down"))
    chosen = [Method("own", lambda task: None, weights=w, blocks=b) for w in (None, "all") for b in ("site", "all")]
    assert [configure(narrow, m, {}).weights for m in chosen] == ["down", "mlp", "all", "all"]
    assert configure(settings, b, dict(steps=3, lr=None, blocks=(1, 2))) == replace(
        settings.loop, steps=3, lr=0.5, blocks=(1, 2), weights="mlp")


@pytest.mark.parametrize("wishes, says", [
    (dict(step=3), "did you mean 'steps'"), (dict(steps=0), "at least 1"), (dict(keep_fraction=0), "above 0"),
    (dict(keep_fraction=1.2), "at most 1"), (dict(lora_rank=-1), "at least 0"), (dict(check_every=0), "at least 1"),
    (dict(lr=float("nan")), "not nan"), (dict(lr=-1), "at least 0"), (dict(lr=0), "above 0"), (dict(lr=10**9), "at most"),
    (dict(steps=2.5), "whole number"), (dict(steps="3"), "whole number"), (dict(steps=True), "whole number"),
    (dict(retain_weight=float("inf")), "not inf"), (dict(batch_tokens=0), "at least 1")])
def test_impossible_settings_are_refused(wishes, says):
    with pytest.raises(UserError, match=says):
        configure(Settings(), Method("plain", lambda task: None), wishes)


def test_numbers_of_numpy_are_numbers():
    "They had been trained with, and then could not be saved."
    given = dict(steps=np.int64(2), lr=np.float32(0.5), lora_rank=np.int8(1), retain_weight=3)
    made = configure(Settings(), Method("plain", lambda task: None), given)
    assert [type(getattr(made, k)) for k in given] == [int, float, int, float] and json.loads(json.dumps(asdict(made)))["steps"] == 2


def test_no_default_can_be_changed(exp):
    with pytest.raises(FrozenInstanceError):
        exp.settings.loop.steps = 1
    exp.settings.tuned["triplet"] = dict(steps=1)
    try:
        assert "triplet" not in biographies_settings().tuned and Settings().tuned == {}
    finally:
        del exp.settings.tuned["triplet"]


def test_stopping_needs_two_hits_in_a_row():
    history, distances = History(LoopConfig(steps=9, check_every=1, stop_at=0.3), stops=True), [2., .2, .9, .2, .1]
    stops = []
    for distance in distances:
        stops.append(history.check_stop(torch.tensor(distance).clone))
        history.add(torch.zeros(()), torch.zeros(()))
    assert stops == [False, False, False, False, True]


def test_a_run_that_runs_away_is_refused(exp):
    history = History(LoopConfig(steps=9), stops=True)
    with pytest.raises(UserError, match="ran away within 0 steps.*smaller step size"):
        history.check_stop(lambda: torch.tensor(float("nan")))
    history.add(torch.tensor(float("inf")), torch.zeros(()))
    with pytest.raises(UserError, match="ran away"):
        history.table()
    before = weights_of(exp)

    def prepare(task):
        loss = method_named("match").prepare(task)
        return lambda step: loss(step) * float("nan")

    with pytest.raises(UserError, match="the weights were put back"):
        unlearn(exp, TARGET, Method("nan", prepare), steps=2)
    assert same(weights_of(exp), before) and exp.applied is None and not exp.busy


def test_blocks_above_the_site_cannot_change_it(exp):
    last = exp.n_layers - 1
    with pytest.raises(UserError, match=f"the first trained block is {last}; train blocks up to {exp.layer}"):
        unlearn(exp, TARGET, "match", steps=2, blocks=(last, last))


def test_one_run_at_a_time(exp):
    said = []

    def prepare(task):
        for call in (lambda: exp.ask([]), lambda: unlearn(exp, TARGET, "match", steps=1)):
            thread = threading.Thread(target=lambda call=call: said.append(refusal(call)))
            thread.start()
            thread.join()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(exp, TARGET, Method("nosy", prepare), steps=1)
    assert len(said) == 2 and all("another run is being made" in s for s in said)
    assert exp.recall([]) == 0 and not exp.busy


def refusal(call):
    try:
        call()
    except UserError as error:
        return str(error)


def test_unknown_words_are_refused(exp):
    for call, says in ((lambda: unlearn(exp, TARGET, "tripled"), "did you mean triplet"),
                       (lambda: unlearn(exp, "Bipo Given"), "did you mean 'Bipo Gifen'"),
                       (lambda: unlearn(exp, TARGET, Method("odd", lambda t: lambda s: 0, retain="hope")), "retain loss 'hope'")):
        with pytest.raises(UserError, match=says):
            call()
    assert exp.applied is None


# -- forgetting

def test_forgets_and_keeps_and_puts_back(exp):
    split, before = split_for(exp, TARGET), weights_of(exp)
    asked, neighbours = questions([split.target], exp.prompts), questions(split.held_out, exp.prompts)
    run = unlearn(exp, TARGET, "triplet")
    after = weights_of(exp)
    try:
        assert exp.recall(asked) == 0
        assert exp.recall(neighbours) >= .97
        assert run.history.distance.dropna().iloc[-1] < 1.2
        assert run.history.retain.iloc[1] == pytest.approx(0, abs=1e-6)
        assert run.step_ms > 0 and run.seconds > 0 and run.targets == (TARGET,)
    finally:
        run.restore()
    assert same(weights_of(exp), before) and exp.applied is None
    assert exp.recall(asked) == 1
    run.reapply()
    assert same(weights_of(exp), after) and exp.applied == run.id
    with run.undone():
        assert same(weights_of(exp), before) and exp.applied is None
    assert same(weights_of(exp), after)
    run.restore()


def test_a_kept_run_is_the_run(exp):
    first = unlearn(exp, TARGET, "match", steps=3)
    first.restore()
    again = unlearn(exp, TARGET, "match", steps=3)
    again.restore()
    fresh = unlearn(exp, TARGET, "match", steps=3, keep=False)
    fresh.restore()
    assert same(first.changed, again.changed) and same(first.original, again.original) and first.id == again.id
    assert [again.seconds, again.step_ms] == [first.seconds, first.step_ms]
    assert again.history.equals(first.history)
    torch.testing.assert_close(fresh.changed, first.changed)


def test_runs_lie_over_each_other_in_order(exp, tmp_path):
    first = unlearn(exp, TARGET, "match", steps=2)
    second = unlearn(exp, exp.known[3].name, "match", steps=2)
    with pytest.raises(UserError, match="restore that one first"):
        first.restore()
    with pytest.raises(UserError, match="in one run"):  # its card would name one of the two
        second.save(tmp_path / "model")
    second.restore()
    assert exp.applied == first.id
    first.restore()


@pytest.mark.parametrize("options", [{}, dict(lora_rank=2), dict(matmul="bfloat16")])
def test_an_interrupt_puts_the_weights_back(exp, options):
    def stops_at_three(task):
        def loss(step):
            if step == 3:
                raise KeyboardInterrupt
            return task.at_site(triplet)
        return loss

    before = weights_of(exp)
    with pytest.raises(KeyboardInterrupt):
        unlearn(exp, TARGET, Method("stops", stops_at_three), **options)
    assert same(weights_of(exp), before)
    assert exp.applied is None and not any(p.requires_grad or p.grad is not None for p in exp.model.parameters())
    assert not any("forward" in vars(m) for m in exp.model.modules())


def test_weights_that_something_else_has_trained_are_not_measured(exp, tmp_path):
    "Kept answers had been told of a model that had been fine-tuned since, and it was saved as the run."
    run = unlearn(exp, TARGET, "match", steps=2)
    try:
        weight = exp.model.get_parameter(next(iter(run.changed)))
        with torch.no_grad():
            weight.mul_(2)
        for call in (lambda: samu.evaluate(run), lambda: run.save(tmp_path / "model")):
            with pytest.raises(UserError, match="were changed since"):
                call()
        assert not (tmp_path / "model").exists()
        run.restore()
        run.reapply()
        assert samu.evaluate(run, ["target_recall"]).target_recall <= 1
    finally:
        run.restore()


def test_part_of_the_change_and_low_rank(exp):
    whole = unlearn(exp, TARGET, "match", steps=3)
    whole.restore()
    half = unlearn(exp, TARGET, "match", steps=3, keep_fraction=0.5)
    half.restore()
    for k, w in half.changed.items():
        torch.testing.assert_close(w, (whole.changed[k] + whole.original[k]) / 2)
    state = torch.get_rng_state()
    low = [unlearn(exp, TARGET, "match", steps=2, lora_rank=2, keep=False, seed=s) for s in (0,)]
    low[0].restore()
    assert torch.equal(torch.get_rng_state(), state)
    change = {k: w - low[0].original[k] for k, w in low[0].changed.items()}
    assert 0 < max(torch.linalg.matrix_rank(c, rtol=1e-3).item() for c in change.values()) <= 2


def test_several_people_are_forgotten_and_saved_together(exp, tmp_path):
    names = [TARGET, exp.known[3].name]
    run = unlearn(exp, names, "triplet")
    try:
        asked = [q for n in names for q in questions([exp.find(n)], exp.prompts)]
        assert exp.recall(asked) <= 0.1
        folder = run.save(tmp_path / "model")
    finally:
        run.restore()
    saved = load(str(folder))
    assert saved.recall(asked) <= 0.1
    assert saved.base.recall(asked) == 1 and saved.table_hash == exp.table_hash
    changed = weights_of(saved)
    assert all(torch.equal(changed[k], w) for k, w in run.changed.items())
    card = read_card(folder)
    assert card["forgotten"] == names and card["settings"]["steps_taken"] == run.steps and card["base_setup"] == "biographies"


def test_a_run_that_is_not_in_the_model_is_not_saved(exp, tmp_path):
    run = unlearn(exp, TARGET, "match", steps=2)
    run.restore()
    with pytest.raises(UserError, match="reapply"):
        run.save(tmp_path / "model")


# -- an edited objective never gives an old run

def test_an_edited_objective_makes_a_new_run(exp, task, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path))
    made = []
    for times in (1.0, -1.0):
        def mine(residuals, aim, frozen, times=times):
            return times * residuals.values.pow(2).mean()

        OBJECTIVES["mine"] = mine
        run = unlearn(exp, TARGET, "mine", steps=2)
        run.restore()
        made.append(run.changed)
    assert not same(*made)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_nothing_from_outside_the_package_has_a_key(exp, task):
    def key(method):
        return run_key(exp, method, task.config, 0, task.aim, [], [make_task, train])

    assert key(method_named("triplet"))
    assert key(method_named("triplet")) == key(method_named("triplet")) != key(method_named("match"))
    for kind, entry in ((OBJECTIVES, lambda residuals, aim, frozen: 0), (RETAIN, replace(RETAIN["residual"], loss=lambda t, b: 0))):
        name = "triplet" if kind is OBJECTIVES else "residual"
        was, kind[name] = kind[name], entry
        assert key(method_named("triplet")) is None
        kind[name] = was
    assert key(Method("mine", lambda task: lambda step: task.at_site(triplet))) is None
    assert key(method_named("triplet"))


SCRIPT = """
import torch
from types import SimpleNamespace
from samu.workshop.registry import objective, OBJECTIVES
from samu.workshop.setups import LoopConfig, Settings
from samu.workshop.loop import method_named, run_key
from samu.forgetting import make_task, train

exp = SimpleNamespace(model_id="m", prompts=[], ordinary={"loss": []}, settings=Settings())

def key(name):
    return run_key(exp, method_named(name), LoopConfig(), 0, SimpleNamespace(scale=torch.ones(1)), [], [make_task, train])

@objective
def mine(residuals, aim, frozen):
    return residuals.values.mean()

print("package", key("triplet"))
print("script", key("mine"))
if NOTEBOOK:
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    for factor in "12":
        shell.run_cell(f"from samu.workshop.registry import objective\\n@objective\\ndef cell(residuals, aim, frozen):"
                       f"\\n    return {factor} * residuals.values.mean()")
        print("notebook", key("cell"), OBJECTIVES["cell"].__code__.co_consts[1])
    print("method", method_named("npo").name, method_named("two_sided").name)
"""


def keys_of(folder: Path, script: Path, notebook: bool) -> list[list[str]]:
    script.write_text(f"NOTEBOOK = {notebook}\n{SCRIPT}")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_a_script_a_notebook_and_a_copy_of_the_package(tmp_path):
    source = Path(samu.__file__).parent
    here = keys_of(source.parent, tmp_path / "here.py", notebook=True)
    assert here[0][0] == "package" and here[0][1] != "None"
    assert here[1] == ["script", "None"]
    assert [h[:2] for h in here[2:4]] == [["notebook", "None"]] * 2 and here[2][2] != here[3][2]
    assert here[4] == ["method", "npo", "two_sided"]      # found without importing their chapters
    copy = tmp_path / "copy" / "samu"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = copy / "forgetting.py"
    text = code.read_text()
    assert "F.relu(1 + D_U - D_K)" in text
    code.write_text(text.replace("F.relu(1 + D_U - D_K)", "F.relu(2 + D_U - D_K)"))
    there = keys_of(copy.parent, tmp_path / "there.py", notebook=False)
    assert there[0][0] == "package" and there[0][1] not in ("None", here[0][1])


def test_distance_of_the_target_and_of_unknown_names(exp, task):
    assert unknown_distance(task).item() > 1.5
    assert torch.equal(aim_for(exp).scale, task.aim.scale)


# -- what an objective gives, and who is named

@pytest.mark.parametrize("given", [lambda r: r.values.mean(0), lambda r: 0.5, lambda r: None,
                                   lambda r: r.values.mean().detach(), lambda r: r.values.mean()[None]])
@pytest.mark.parametrize("as_method", [False, True])
def test_a_loss_is_one_number_with_a_gradient(exp, given, as_method):
    OBJECTIVES["own"] = lambda residuals, aim, frozen: given(residuals)
    method = Method("own", lambda task: lambda step: task.at_site(OBJECTIVES["own"])) if as_method else "own"
    before = weights_of(exp)
    with pytest.raises(UserError, match="'own' must give a tensor of one number, with a gradient, not"):
        unlearn(exp, TARGET, method, steps=2)
    assert same(weights_of(exp), before) and exp.applied is None and not exp.busy


def test_names_and_methods_are_words(exp):
    for call in (lambda: samu.unlearn(exp, None), lambda: samu.unlearn(exp, exp.find(TARGET)), lambda: unlearn(exp, [exp.find(TARGET)]),
                 lambda: samu.unlearn(exp, TARGET, 3), lambda: samu.unlearn(exp, TARGET, ["npo"]),
                 lambda: samu.unlearn(exp, TARGET, keep_facts=3)):
        with pytest.raises(UserError, match="in quotes, not "):
            call()
    with pytest.raises(UserError, match="in turn, not one"):
        samu.unlearn(exp, TARGET, in_turn=True)
