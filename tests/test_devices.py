"""Tensors on the wrong device, and values fetched from it, found without a GPU.

`meta` tensors have a shape and no values: a CPU constant, `.item()` and `.cpu()` raise there, forward, backward and
optimiser included. Functions that need values are not run on it; the tests marked `gpu` run them where there is a
CUDA device.
"""

from dataclasses import fields

import pandas as pd
import pytest
import samu.baselines
import samu.forgetting
import samu.recall_side  # noqa: F401 (registers its method)
import torch
from samu.entities import Roles, questions
from samu.forgetting import Aim, make_task
from samu.latents import Centroids, Latents
from samu.residuals import NameResiduals, name_residuals
from samu.saes import pre_activations, text_residuals
from samu.workshop.invented import make_biographies, word_tokenizer
from samu.workshop.loop import configure, method_named, prepared, training
from samu.workshop.registry import METHODS, OBJECTIVES, RETAIN
from samu.workshop.setups import Experiment, Settings
from samu.workshop.targets import FrozenActivations, KnownLine

WIDTH, BLOCKS, SITE, D_SAE = 32, 3, 1, 64
ARCHITECTURES = {
    "StandardSAE": {},
    "JumpReLUSAE": {},
    "TopKSAE": dict(k=4),
    "TopKSAE, rescaled": dict(k=4, rescale_acts_by_decoder_norm=True),
    "GatedSAE": {},
}
LOOKS = {"crisp"}  # picks latents by their values before the first step
EVERYTHING = [name for name in [*METHODS, *OBJECTIVES, "triplet+match"] if name not in LOOKS]


@pytest.fixture(autouse=True)
def transformers_do_not_look(monkeypatch):
    "transformers reads the positions back, once for each forward pass, to see whether texts are packed. We do not."
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *args: True)


# --- A small experiment on the meta device


def real(*shape):
    return torch.empty(shape, device="meta")


def index(*shape):
    return torch.empty(shape, device="meta", dtype=torch.long)


def small_sae(name="StandardSAE"):
    "A frozen SAE."
    import sae_lens

    kind = name.split(",")[0]
    config = getattr(sae_lens, f"{kind}Config")(d_in=WIDTH, d_sae=D_SAE, device="meta", **ARCHITECTURES[name])
    return getattr(sae_lens, kind)(config).eval().requires_grad_(False)


def small_experiment(dtype=torch.float32):
    "A tiny model with everything that is computed from it made up."
    from transformers import LlamaConfig, LlamaForCausalLM

    world = make_biographies(seed=0)
    people, unknown = world.people[:20], world.unknown[:40]
    tokenizer = word_tokenizer(world)
    with torch.device("meta"):
        sizes = dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=BLOCKS, num_attention_heads=2)
        hf = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)).to(dtype)
    texts = ["The life of a bird in the house is good ."] * 20
    settings = Settings(reply_tokens=2, unknown_answers=("unknown",), objective="triplet", matmul_scoring="full")
    exp = Experiment("small", hf.eval().requires_grad_(False), tokenizer, SITE, people, world.prompts,
                     dict(loss=texts, score=texts), 0, None, settings, "no hash")
    exp.known, exp.unknown = people, unknown
    rows = [dict(name=e.name, kind=e.kind, attributes=5, right=5, knows=list(e.facts), grade="known") for e in people]
    exp.grades = pd.DataFrame(rows)
    exp.roles = Roles(tuple(people[:12]), tuple(people[12:]), tuple(unknown[:24]), tuple(unknown[24:]))
    exp.sae, exp.centroids = small_sae(), Centroids(*(real(2, D_SAE) for _ in range(4)), real(2, WIDTH))
    exp.name_line = KnownLine(real(WIDTH), real(WIDTH), real(WIDTH).abs() + 1)
    scores = {f.name: real(D_SAE) for f in fields(Latents)}
    exp.latents = Latents(**scores | dict(known=index(4), unknown=index(4), by_kind={"person": real(D_SAE)}))
    return exp


@pytest.fixture(scope="module")
def exp():
    return small_experiment()


def made_up_activations(exp, forget, *rest):
    return FrozenActivations(*(real(sum(len(b.position) for b in forget), WIDTH) for _ in range(2)))


def task_for(exp, name):
    "A task on the first person. To choose a stand-in and to pair its tokens with the target's takes values."
    method = method_named(name)
    config = configure(exp.settings, method, dict(steps=2, retain_texts=40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samu.forgetting, "choose_stand_in", lambda exp, facts, entities, *rest: entities[0])
        patch.setattr(samu.forgetting, "frozen_activations", made_up_activations)
        return make_task(exp, [exp.known[0].name], config), method


def is_on(tensor, *shape):
    "Checks device and shape; without values there is nothing else to check."
    assert (tensor.device.type, tuple(tensor.shape)) == ("meta", shape)


def an_aim(sae):
    return Aim(*(real(2, D_SAE) for _ in range(4)), real(2, WIDTH), sae=sae, selected=index(8), n_known=4, scale=real(WIDTH))


RESIDUALS = NameResiduals(real(9, WIDTH), index(9), index(9))
FROZEN = FrozenActivations(real(9, WIDTH), real(9, WIDTH))


# --- Everything of a training step


def test_everything_is_there(exp):
    task, _ = task_for(exp, "triplet")
    batches = task.forget + task.validate + task.answers + task.retain + task.retain_answers
    assert all([task.forget, task.validate, task.answers, task.retain, task.retain_answers])
    tensors = [t for b in batches for t in vars(b).values() if isinstance(t, torch.Tensor)]
    assert {t.device.type for t in [*tensors, task.frozen.own, task.frozen.stand_in]} == {"meta"}


def test_residuals(exp):
    found, names = name_residuals(exp, questions(exp.known, exp.prompts, "loss"))
    assert len(names) == len(exp.known)
    is_on(found.values, len(found.item), WIDTH)
    values, tokens, item = text_residuals(exp, exp.ordinary["loss"])
    is_on(values, len(tokens), WIDTH)
    assert tokens.device.type == item.device.type == "meta"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dictionaries(architecture):
    sae, h = small_sae(architecture), real(9, WIDTH).requires_grad_()
    is_on(pre_activations(sae, h), 9, D_SAE)
    some = pre_activations(sae, h, index(5))
    is_on(some, 9, 5)
    some.sum().backward()
    is_on(h.grad, 9, WIDTH)
    for name in OBJECTIVES:
        is_on(OBJECTIVES[name](RESIDUALS, an_aim(sae), FROZEN))


def take_steps(exp, name):
    "Two steps, as the loop takes them, less the check whether to stop, which needs values."
    task, method = task_for(exp, name)
    with torch.no_grad():
        loss, draws = prepared(task, method)
    with training(exp, task.config, 0) as trainer:
        for task.step, drawn in enumerate(draws):
            forget = loss(task.step)
            is_on(forget)
            forget.backward()
            for batch in drawn:
                part = RETAIN[method.retain].loss(task, batch)
                is_on(part)
                part.backward()
            trainer.step()
        for p in trainer.masters:
            is_on(trainer.optimizer.state[p]["exp_avg"], *p.shape)
    assert not any(p.requires_grad or p.grad is not None for p in exp.model.parameters())
    return trainer


@pytest.mark.parametrize("name", EVERYTHING)
def test_training_step(exp, name):
    trainer = take_steps(exp, name)
    assert all(a is b for a, b in zip(trainer.masters, trainer.own, strict=True))


@pytest.mark.parametrize("name", ["triplet", "two_sided", "ga", "npo", "idk_dpo", "rmu"])
def test_training_step_with_master_copies(name):
    trainer = take_steps(small_experiment(torch.bfloat16), name)
    assert {p.dtype for p in trainer.masters} == {torch.float32} and {p.dtype for p in trainer.own} == {torch.bfloat16}


# --- Planted mistakes are found


def with_cpu_constant(residuals, aim, frozen):
    return (residuals.values - torch.tensor([1.0], device="cpu")).pow(2).mean()


def with_item(residuals, aim, frozen):
    return residuals.values.pow(2).mean() / aim.scale.mean().item()


def with_cpu_copy(residuals, aim, frozen):
    return (residuals.values.cpu() - 1).pow(2).mean()


@pytest.mark.parametrize("planted, message", [
    (with_cpu_constant, "not on the expected device meta|same device"),
    (with_item, r"item\(\) cannot be called"),
    (with_cpu_copy, "Cannot copy out of meta"),
])
def test_planted_mistakes_are_found(exp, planted, message):
    task, _ = task_for(exp, "triplet")
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        task.at_site(planted)


# --- The real thing, where there is a GPU


@pytest.fixture(scope="module")
def on_gpu():
    "The invented biographies on a CUDA device."
    import samu as package

    return package.load("biographies", device="cuda")


@pytest.mark.gpu
def test_unlearning_on_a_gpu(on_gpu, tmp_path):
    import samu as package

    target = on_gpu.known[7].name
    for method in ("triplet", "npo"):
        run = package.unlearn(on_gpu, target, method)
        row = package.evaluate(run)
        assert row.target_recall <= 0.1 and row.peak_mb > 0 and row.step_ms > 0
        if method == "triplet":
            assert row.retain_ratio >= 0.97 and row.perplexity_ratio <= 1.05
            assert (run.save(tmp_path / "model") / "samu.json").is_file()
        run.restore()
    assert on_gpu.recall(questions([on_gpu.known[7]], on_gpu.prompts)) >= 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(METHODS))
def test_no_step_waits_for_the_gpu(on_gpu, name):
    method = method_named(name)
    task = make_task(on_gpu, [on_gpu.known[8].name], configure(on_gpu.settings, method, dict(steps=2)))
    with torch.no_grad():
        loss, draws = prepared(task, method)
    try:
        with training(on_gpu, task.config, 0) as trainer:
            for task.step, drawn in enumerate(draws):
                loss(task.step).backward()
                for batch in drawn:
                    RETAIN[method.retain].loss(task, batch).backward()
                trainer.step()
                torch.cuda.synchronize()  # the first step sets things up, and may wait
                torch.cuda.set_sync_debug_mode("error")
            torch.cuda.set_sync_debug_mode("default")
            raise KeyboardInterrupt  # the weights are put back
    except KeyboardInterrupt:
        pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_gpu_and_cpu_agree(on_gpu):
    import samu as package

    on_cpu = package.load("biographies", device="cpu")
    asked = questions(on_gpu.known[:10], on_gpu.prompts)
    here, there = (name_residuals(e, asked)[0].values.cpu() for e in (on_cpu, on_gpu))
    assert torch.allclose(here, there, atol=2e-2, rtol=2e-2)
    assert on_cpu.ask(asked) == on_gpu.ask(asked)
