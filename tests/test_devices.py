"""Tensors on the wrong device, and values fetched from it, found without a GPU.

Two devices that no machine need have. `meta` tensors have a shape and no values: a CPU constant, `.item()` and `.cpu()`
raise there, forward, backward and optimiser included. Tensors of FakeTensorMode say that they are on `cuda`, which also
catches a CPU matrix in `@`, but only forward. Functions that need values can be run on neither: they are listed below,
and the tests marked `gpu` run them where there is a CUDA device.
"""
import random
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

import samu.latents, samu.models
from samu.baselines import (METHODS, answer_log_probabilities, clamped, crisp_loss, dpo_loss, method_named, npo_loss, residual_squared, salient_latents, simnpo_loss,
                            target_texts)
from samu.entities import make_biographies, ordinary_sentence, questions
from samu.evaluation import UnknownTest, alignment, compare, evaluate, make_reference, name_pre_activations, percentile
from samu.latents import Latents, by_entity, find_latents, firing, name_statistics, separation_scores, steer
from samu.models import (NameBatch, NameResiduals, Setup, answer, batch_residuals, edit_residual, load_setup, name_batches, name_residuals,
                         perplexity, residuals_by_layer, word_tokenizer, wrap)
from samu.saes import pre_activations, sae_for, sae_quality, text_residuals
from samu.unlearning import (OBJECTIVES, Aim, Before, TextBatch, Unlearned, aim_for, answer_loss, make_task, objective, residual_retain, retain_batches_of,
                             retain_loss, save_model, text_batches, trained_parameters, training_step, unknown_distance, unlearn)

WIDTH, BLOCKS, SITE, D_SAE = 32, 3, 1, 64
ARCHITECTURES = {"StandardSAE": {}, "JumpReLUSAE": {}, "TopKSAE": dict(k=4), "TopKSAE, rescaled": dict(k=4, rescale_acts_by_decoder_norm=True), "GatedSAE": {}}
ALL_OBJECTIVES = [*OBJECTIVES, "triplet+match"]


# --- A small world on a device

@pytest.fixture(scope="module")
def world(): return make_biographies(seed=0, n_people=20, n_unknown=40)

def small_setup(world, dtype=torch.float32):
    "A tiny model on the meta device, in a Setup."
    from transformers import LlamaConfig, LlamaForCausalLM
    tokenizer, rng = word_tokenizer(world), random.Random(0)
    with torch.device("meta"):
        hf = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=BLOCKS,
                                          num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)).to(dtype)
    texts = [ordinary_sentence(rng) for _ in range(20)]
    return Setup("small", wrap(hf, tokenizer, device="meta"), tokenizer, layer=SITE, entities=world.people, unknown=world.unknown,
                 prompts=world.prompts, ordinary=dict(loss=texts, score=texts), seed=0, key="small", reply_tokens=2, unknown_answers=("unknown",))

def small_sae(name="StandardSAE"):
    "A frozen SAE on the meta device."
    import sae_lens
    kind = name.split(",")[0]
    config = getattr(sae_lens, f"{kind}Config")(d_in=WIDTH, d_sae=D_SAE, device="meta", **ARCHITECTURES[name])
    return getattr(sae_lens, kind)(config).eval().requires_grad_(False)

class On:
    "Tensors without values on one device."
    def __init__(self, device): self.device = device
    def real(self, *shape): return torch.empty(shape, device=self.device)
    def index(self, *shape): return torch.empty(shape, device=self.device, dtype=torch.long)
    def latents(self):
        return Latents(self.index(4), self.index(4), self.real(D_SAE), {"person": self.real(D_SAE)}, self.real(D_SAE),
                       *(self.real(2, D_SAE) for _ in range(4)), self.real(2, WIDTH))
    def aim(self, sae):
        l = self.latents()
        return Aim(sae, l.selected, 4, l.mu_unknown, l.sd_unknown, l.mu_known, l.on_unknown, l.mean_residual, self.real(WIDTH))
    def residuals(self): return NameResiduals(self.real(9, WIDTH), self.index(9), self.index(9))
    def names(self): return NameBatch(self.index(4, 7), *(self.index(9) for _ in range(4)))
    def texts(self): return TextBatch(self.index(4, 7), self.index(9), self.index(9), self.real(4, 6, WIDTH), self.index(9))
    def unknown_test(self): return UnknownTest(self.index(4), self.real(4), self.real(4, 4), self.real(10), 0.5, self.real(D_SAE), self.real(D_SAE))

META = On("meta")

@pytest.fixture(scope="module")
def setup(world): return small_setup(world)

@pytest.fixture(scope="module")
def sae(): return small_sae()

@pytest.fixture(scope="module")
def grades(setup, tmp_path_factory):
    "Everybody is known, and nobody else: as graded if the tiny model gave all the right answers."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMU_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(samu.models, "answer", lambda model, tokenizer, asked, *args, **kwargs: [q.answers[0] for q in asked])
        found = samu.latents.grade(setup)
    assert list(found.name[found.grade == "known"]) == [e.name for e in setup.entities]
    return found

@pytest.fixture(scope="module")
def task(setup, sae, grades): return make_task(setup, sae, META.latents(), setup.entities[0].name, grades, META.aim(sae), stranger=setup.unknown[0])

def is_on(tensor, device, *shape):
    "Checks device and shape; without values there is nothing else to check."
    assert (tensor.device.type, tuple(tensor.shape)) == (device, shape)


# --- The whole training step, on meta

def test_everything_is_there(setup, sae, task):
    assert setup.device.type == "meta" and setup.model.cfg.device in ("meta", torch.device("meta"))
    for module in setup.model, sae: assert {t.device.type for t in [*module.parameters(), *module.buffers()]} == {"meta"}
    tensors = [getattr(b, f) for b in task.forget + task.validate for f in ("ids", "row", "column", "index", "from_end")]
    tensors += [getattr(b, f) for b in task.retain for f in ("ids", "row", "column", "frozen")] + [getattr(b, f) for b in task.before for f in ("own", "stranger")]
    tensors += [getattr(b, f) for b in task.answers + task.retain_answers for f in ("ids", "row", "column", "index")]
    assert len(task.forget) and len(task.validate) and len(task.retain) and len(task.answers) and len(task.retain_answers)
    assert {t.device.type for t in tensors} == {"meta"}
    assert {f.device.type for f in META.names().to("meta").__dict__.values()} == {"meta"}

@pytest.mark.parametrize("which, tokens", [("last", 1), ("all", 2)])
def test_residuals_at_names(setup, which, tokens):
    asked = questions(setup.entities, setup.prompts, "loss")
    batches, names = name_batches(setup.tokenizer, asked, which, device=setup.device)
    assert len(names) == len(setup.entities)
    for batch in batches: is_on(batch_residuals(setup.model, batch, SITE).values, "meta", tokens * len(batch), WIDTH)
    found, _ = name_residuals(setup.model, setup.tokenizer, asked, SITE, which)
    is_on(found.values, "meta", tokens * sum(map(len, batches)), WIDTH)

def test_residuals_by_layer(setup):
    asked = questions(setup.entities[:3], setup.prompts, "loss")
    found = residuals_by_layer(setup.model, setup.tokenizer, asked, [0, 2])
    assert list(found) == [0, 2]
    for values in found.values(): is_on(values, "meta", *name_residuals(setup.model, setup.tokenizer, asked, 0)[0].values.shape)

def test_residuals_of_texts(setup):
    values, tokens, index = text_residuals(setup, setup.ordinary["loss"])
    is_on(values, "meta", len(tokens), WIDTH); is_on(tokens, "meta", len(tokens)); is_on(index, "meta", len(tokens))
    for batch in text_batches(setup, setup.ordinary["loss"]): is_on(batch.frozen, "meta", len(batch), batch.ids.shape[1] - 1, WIDTH)

@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pre_activations(architecture):
    sae, residuals = small_sae(architecture), META.real(9, WIDTH).requires_grad_()
    is_on(pre_activations(sae, residuals), "meta", 9, D_SAE)
    some = pre_activations(sae, residuals, META.index(5))
    is_on(some, "meta", 9, 5); is_on(sae.decode(sae.encode(residuals)), "meta", 9, WIDTH)
    some.sum().backward()
    is_on(residuals.grad, "meta", 9, WIDTH)

@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ALL_OBJECTIVES)
def test_objectives(setup, task, name, architecture):
    sae = small_sae(architecture)
    parameters = [p.requires_grad_() for p in trained_parameters(setup).values()]
    f, aim = objective(name), META.aim(sae)
    loss = torch.stack([f(batch_residuals(setup.model, b, SITE), aim, h0) for b, h0 in zip(task.forget, task.before)]).mean()
    is_on(loss, "meta")
    try:
        loss.backward()
        for p in parameters: is_on(p.grad, "meta", *p.shape)
    finally:
        for p in parameters: p.requires_grad_(False).grad = None

def test_a_stranger_less_known(setup, sae, grades, task):
    unlike = make_task(setup, sae, META.latents(), task.target.name, grades, META.aim(sae), stranger=setup.unknown[0], unlike_known=True)
    for made, plain in zip(unlike.before, task.before): is_on(made.stranger, "meta", *plain.stranger.shape)

def test_other_losses(setup, task):
    is_on(residual_retain(setup, task.retain[0], task.aim), "meta")
    is_on(answer_loss(setup, task.answers[0]), "meta")
    is_on(task.on_answers(), "meta"); is_on(unknown_distance(task), "meta"); is_on(unknown_distance(task, task.forget), "meta")

@pytest.mark.parametrize("name", METHODS)
def test_losses_of_methods(task, name):
    "Preparation, forget loss and retain loss of every method, with gradients."
    method = method_named(name)
    own = [p.requires_grad_() for p in trained_parameters(task.setup, method.blocks, method.weights).values()]
    prepare(task, method)
    kept = [t for v in task.notes.values() for t in (v if isinstance(v, (list, tuple)) else [v])]
    assert {t.device.type for t in kept if isinstance(t, torch.Tensor)} <= {"meta"}
    try:
        loss = method.forget(task, 0)
        is_on(loss, "meta")
        batches = retain_batches_of(task, method)
        if batches: is_on(retain_loss(task, method, batches[0]), "meta")
        assert bool(batches) == (method.retain != "none")
        loss.backward()
        for p in own: is_on(p.grad, "meta", *p.shape)
    finally:
        for p in own: p.requires_grad_(False).grad = None
        task.notes.clear()

def test_parts_of_baselines(setup, sae, task):
    n = len(task.asked)
    for values in answer_log_probabilities(setup, task.answers, n): is_on(values, "meta", n)
    told = target_texts(task)
    assert sum(map(len, told)) == n and all(len(b.row) == len(b.column) for b in told)
    for values in salient_latents(task, told, k=5): is_on(values, "meta", 5)
    is_on(residual_squared(setup, task.retain[0]), "meta")
    with torch.no_grad(), edit_residual(setup.model, SITE, clamped(sae, META.index(3), META.real(3))): is_on(setup.model(META.index(2, 5)), "meta", 2, 5, len(setup.tokenizer))

def prepare(task, method):
    if method.prepare:
        with torch.no_grad(): method.prepare(task)

def take_steps(task, name):
    "Two training steps, as `unlearn` takes them; gives the parameters of the optimiser and those of the model."
    method = method_named(name)
    prepare(task, method)
    own = [p.requires_grad_() for p in trained_parameters(task.setup, method.blocks, method.weights).values()]
    masters = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in own]
    optimizer = torch.optim.AdamW(masters, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0)
    retain = retain_batches_of(task, method)[:3]
    try:
        for step in range(2):
            losses = torch.stack(training_step(task, method, masters, own, optimizer, retain, 20.0, step))
            schedule.step()
            is_on(losses, "meta", 2)
            assert not losses.requires_grad
        for p in masters:
            state = optimizer.state[p]
            is_on(state["exp_avg"], "meta", *p.shape); is_on(state["exp_avg_sq"], "meta", *p.shape)
        assert all(p.grad is None for p in own + masters)
    finally:
        for p in own: p.requires_grad_(False).grad = None
    return masters, own

@pytest.mark.parametrize("name", [*METHODS, "triplet+match"])
def test_training_step(task, name):
    masters, own = take_steps(task, name)
    assert all(m is p for m, p in zip(masters, own))
    weights = {"mlp": 3, "down": 1, "all": 9}[method_named(name).weights]
    assert len(own) == weights * (BLOCKS if method_named(name).blocks == "all" else SITE + 1)

@pytest.mark.parametrize("name", ["triplet", "match", "two_sided", "ga", "npo", "idk_dpo", "rmu", "crisp", "triplet_random"])
def test_training_step_with_master_copies(world, sae, grades, name):
    setup = small_setup(world, torch.bfloat16)
    task = make_task(setup, sae, META.latents(), setup.entities[0].name, grades, META.aim(sae), stranger=setup.unknown[0])
    assert task.before[0].own.dtype == torch.float32 and task.retain[0].frozen.dtype == setup.dtype == torch.bfloat16
    masters, own = take_steps(task, name)
    assert {p.dtype for p in masters} == {torch.float32} and {p.dtype for p in own} == {torch.bfloat16}

def test_weights_are_put_back(setup):
    weights = {k: p.detach().clone() for k, p in trained_parameters(setup).items()}
    done = Unlearned("triplet", "nobody", dict(blocks="site", weights="mlp"), None, 0.0, 0.0, 0.0, weights, weights)
    done.restore(setup); done.reapply(setup)
    assert setup.device.type == "meta"

def test_aim_and_task_from_grades(setup, sae, grades, monkeypatch):
    monkeypatch.setattr(samu.latents, "grade", lambda setup: grades)
    aim = aim_for(setup, sae, META.latents())
    is_on(aim.scale, "meta", WIDTH); is_on(aim.selected, "meta", 8)
    task = make_task(setup, sae, META.latents(), setup.entities[1].name, grades, stranger=setup.unknown[0])
    is_on(task.at_site(OBJECTIVES["triplet"]), "meta")


# --- The measures, on meta

def test_separation_scores(): is_on(separation_scores(META.real(4, D_SAE), META.real(5, D_SAE)), "meta", D_SAE)
def test_by_entity(): is_on(by_entity(META.real(9, D_SAE), META.index(9), 4), "meta", 4, D_SAE)
def test_alignment(): is_on(alignment(*(META.real(4) for _ in range(4))), "meta")
def test_percentile(): is_on(percentile(META.real(), META.real(10)), "meta")
def test_unknown_test():
    distance = META.unknown_test().distance(META.real(3, D_SAE))
    is_on(distance, "meta", 3)
    is_on(percentile(distance[0], META.unknown_test().others), "meta")
def test_firing(setup, sae): is_on(firing(setup, sae, setup.entities[:4]), "meta", 4, D_SAE)
def test_name_pre_activations(setup, sae): is_on(name_pre_activations(setup, sae, setup.entities[:4]), "meta", 4, D_SAE)

@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("toward", ["unknown", "known"])
def test_steering(setup, architecture, toward):
    edit = steer(setup, small_sae(architecture), META.latents(), toward)
    with torch.no_grad(), edit_residual(setup.model, SITE, lambda h: edit(h, None)): is_on(setup.model(META.index(2, 5)), "meta", 2, 5, len(setup.tokenizer))


# --- What needs values

NEED_VALUES = {  # these fetch numbers by design, a few times in a run and never within a training step
    "answer": lambda setup, sae, task: answer(setup.model, setup.tokenizer, ["The life of"], 2),
    "perplexity": lambda setup, sae, task: perplexity(setup.model, setup.tokenizer, setup.ordinary["score"]),
    "sae_quality": lambda setup, sae, task: sae_quality(sae, META.real(20, WIDTH)),
    "name_statistics": lambda setup, sae, task: name_statistics(setup, sae, setup.entities[:4]),
    "unlearn": lambda setup, sae, task: unlearn(task, "triplet", steps=1),  # its stopping rule; its steps are tested above
}

@pytest.mark.parametrize("name", NEED_VALUES)
def test_what_needs_values(setup, sae, task, name):
    "No skip: that these cannot run here is itself checked. One that no longer raises belongs among the tests above."
    with pytest.raises((RuntimeError, NotImplementedError), match=r"item\(\) cannot be called on meta|nonzero|data-dependent"):
        try: NEED_VALUES[name](setup, sae, task)
        finally:
            for p in setup.model.parameters(): p.requires_grad_(False)


# --- Forward, on a CUDA device that is not there

def walk(x, index):
    "A view of x by the ints, slices, None and ... of an index, and the tensors that are left of it, as aten takes them."
    index = index if isinstance(index, tuple) else (index,)
    rest = x.ndim - sum(i is not None and i is not Ellipsis for i in index)
    places, dim = [], 0
    for i in index:
        if i is Ellipsis: dim += rest
        elif i is None: x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(i, slice): x, dim = torch.ops.aten.slice(x, dim, i.start, i.stop, i.step or 1), dim + 1
        elif isinstance(i, int): x = x.select(dim, i)
        else: places, dim = places + [None] * (dim - len(places)) + [torch.as_tensor(i)], dim + 1
    return x, places

def getitem(x, index):
    view, places = walk(x, index)
    return torch.ops.aten.index(view, places) if places else view

def setitem(x, index, value):
    view, places = walk(x, index)
    if places: torch.ops.aten.index_put_(view, places, value)
    elif isinstance(value, torch.Tensor): view.copy_(value)
    else: view.fill_(value)

class ByAten(TorchFunctionMode):
    "A few of Python's ways to call torch open the device first, which a CPU build of torch cannot; aten's own operations do not."
    instead = {torch.Tensor.__getitem__: getitem, torch.Tensor.__setitem__: setitem, torch.Tensor.__invert__: torch.ops.aten.bitwise_not,
               torch.Tensor.contiguous: lambda x: torch.ops.aten.clone(x, memory_format=torch.contiguous_format)}
    def __torch_function__(self, func, types, args=(), kwargs=None): return self.instead.get(func, func)(*args, **(kwargs or {}))

def test_indexing_by_aten():
    x, i = torch.arange(60).view(3, 4, 5), torch.tensor([2, 0])
    for index in [0, -1, slice(1, None), i, [1, 2], (i, i), (slice(None), i), (..., i), (0, ..., 1), (None, i), (slice(None), None), (Ellipsis, None),
                  (slice(None), slice(1, 3)), (i, slice(None), i), (0, i), (slice(None, -1),), x[:, 0, 0] > 10]:
        assert torch.equal(getitem(x, index), x[index]), index
        ours, theirs, value = x.clone(), x.clone(), -x[index]
        setitem(ours, index, value); theirs[index] = value
        assert torch.equal(ours, theirs), index
    ours = x.clone(); setitem(ours, slice(1), 7)
    assert (ours[:1] == 7).all() and torch.equal(ours[1:], x[1:])
    with ByAten(): assert torch.equal((~(x > 3))[1:], ~(x > 3)[1:]) and x.mT.contiguous().is_contiguous()

@contextmanager
def pretended():
    with FakeTensorMode(), torch.no_grad(), ByAten(): yield On("cuda")

def moved(module):
    "The module with all its tensors on a CUDA device; within `pretended` only."
    new = {}
    def move(t):
        if id(t) not in new:
            there = torch.empty(t.shape, dtype=t.dtype, device="cuda")
            new[id(t)] = t, nn.Parameter(there, requires_grad=False) if isinstance(t, nn.Parameter) else there   # t stays alive, so that its id stays its own
        return new[id(t)][1]
    for m in module.modules():
        for tensors in m._parameters, m._buffers: tensors.update({k: move(t) for k, t in tensors.items() if t is not None})
    return module

@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pre_activations_on_cuda(architecture):
    with pretended() as on:
        sae, residuals = moved(small_sae(architecture)), on.real(9, WIDTH)
        is_on(pre_activations(sae, residuals), "cuda", 9, D_SAE)
        is_on(pre_activations(sae, residuals, on.index(5)), "cuda", 9, 5)
        is_on(sae.decode(sae.encode(residuals)), "cuda", 9, WIDTH)

@pytest.mark.parametrize("name", ALL_OBJECTIVES)
def test_objectives_on_cuda(name):
    with pretended() as on: is_on(objective(name)(on.residuals(), on.aim(moved(small_sae())), Before(on.real(9, WIDTH), on.real(9, WIDTH))), "cuda")

MEASURES = {
    "separation_scores": lambda on: separation_scores(on.real(4, D_SAE), on.real(5, D_SAE)),
    "by_entity": lambda on: by_entity(on.real(9, D_SAE), on.index(9), 4),
    "alignment": lambda on: alignment(*(on.real(4) for _ in range(4))),
    "percentile": lambda on: percentile(on.real(), on.real(10)),
    "distance": lambda on: on.unknown_test().distance(on.real(3, D_SAE)),
    "npo_loss": lambda on: npo_loss(on.real(4), on.real(4)),
    "simnpo_loss": lambda on: simnpo_loss(on.real(4), on.real(4)),
    "dpo_loss": lambda on: dpo_loss(*(on.real(4) for _ in range(4))),
    "crisp_loss": lambda on: crisp_loss(on.real(9, 4), on.real(9), on.real(9, 4), on.real(4)),
}

@pytest.mark.parametrize("name", MEASURES)
def test_measures_on_cuda(name):
    with pretended() as on: assert MEASURES[name](on).device.type == "cuda"

def test_model_on_cuda(world):
    setup = small_setup(world)
    with pretended() as on:
        moved(setup.model)
        assert setup.device.type == "cuda"
        is_on(batch_residuals(setup.model, on.names(), SITE).values, "cuda", 9, WIDTH)
        sae = moved(small_sae())
        is_on(residual_retain(setup, on.texts(), on.aim(sae)), "cuda")
        is_on(answer_loss(setup, on.texts()), "cuda")
        is_on(residual_squared(setup, on.texts()), "cuda")
        for values in answer_log_probabilities(setup, [on.texts()], 4): is_on(values, "cuda", 4)
        is_on(clamped(sae, on.index(3), on.real(3))(on.real(4, 3, WIDTH)), "cuda", 4, 3, WIDTH)
        is_on(steer(setup, sae, on.latents())(on.real(4, 3, WIDTH), None), "cuda", 4, 3, WIDTH)


# --- Planted mistakes are found

def with_cpu_constant(residuals, aim, before=None):
    return (residuals.values - torch.tensor([1.0], device="cpu")).pow(2).mean()

def with_item(residuals, aim, before=None):
    return residuals.values.pow(2).mean() / aim.scale.mean().item()

def with_cpu_copy(residuals, aim, before=None):
    return (residuals.values.cpu() - 1).pow(2).mean()

def with_cpu_matrix(residuals, aim, before=None):
    return (residuals.values @ torch.empty(WIDTH, 2, device="cpu")).pow(2).mean()

@pytest.mark.parametrize("planted, message", [(with_cpu_constant, "not on the expected device meta|same device"), (with_item, r"item\(\) cannot be called"),
                                              (with_cpu_copy, "Cannot copy out of meta")])
def test_planted_mistakes_are_found(task, planted, message):
    with pytest.raises((RuntimeError, NotImplementedError), match=message): task.at_site(planted)

def test_planted_mistake_in_the_aim_is_found(sae, task):
    aim = META.aim(sae); aim.mu_unknown = torch.zeros(2, D_SAE)
    with pytest.raises(RuntimeError, match="not on the expected device meta|same device"): OBJECTIVES["triplet"](META.residuals(), aim)

@pytest.mark.parametrize("planted", [with_cpu_constant, with_cpu_matrix])
def test_planted_mistakes_are_found_on_cuda(planted):
    with pretended() as on:
        with pytest.raises(RuntimeError, match="same device"): planted(on.residuals(), on.aim(moved(small_sae())))

def test_planted_item_is_found_on_cuda():
    from torch._subclasses.fake_tensor import DataDependentOutputException
    with pretended() as on:
        with pytest.raises(DataDependentOutputException): with_item(on.residuals(), on.aim(moved(small_sae())))


# --- The real thing, where there is a GPU

@pytest.fixture(scope="module")
def real():
    "The invented biographies on a CUDA device: setup, SAE, latents. The model and the SAE come from the cache, or are trained."
    setup = load_setup("biographies", device="cuda")
    sae = sae_for(setup)
    return setup, sae, find_latents(setup, sae)

@pytest.mark.gpu
def test_unlearning_on_a_gpu(real, tmp_path):
    setup, sae, latents = real
    target = setup.entities[7].name
    rows, runs, ref, places = compare(setup, sae, latents, target, ("triplet", "ga"), keep="triplet")
    by_method = {r["method"]: r for r in rows}
    assert setup.device.type == latents.scores.device.type == runs["triplet"].changed["model.layers.0.mlp.down_proj.weight"].device.type == "cuda"
    assert by_method["original"]["target_recall"] >= 0.9 and by_method["triplet"]["target_recall"] == 0
    assert by_method["triplet"]["retain_ratio"] >= 0.98 and by_method["triplet"]["perplexity_ratio"] <= 1.05
    assert by_method["ga"]["perplexity_ratio"] > 2 or by_method["ga"]["retain_ratio"] < 0.5
    assert runs["triplet"].peak_mb > 0 and {z.device.type for z in places.values()} == {"cpu"}
    assert (save_model(setup, runs["triplet"], tmp_path / "model") / "samu.json").is_file()
    runs["triplet"].restore(setup)
    again = evaluate(ref, "restored")
    assert all(again[k] == ref.original[k] for k in ("target_recall", "retain_recall")) and again["perplexity_ratio"] == pytest.approx(1, abs=1e-4)

@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits_for_the_gpu(real, name):
    setup, sae, latents = real
    task, method = make_task(setup, sae, latents, setup.entities[8].name), method_named(name)
    own = [p.requires_grad_() for p in trained_parameters(setup, method.blocks, method.weights).values()]
    optimizer = torch.optim.AdamW(own, lr=0.0, weight_decay=0.0)
    prepare(task, method)
    step = lambda: training_step(task, method, own, own, optimizer, retain_batches_of(task, method)[:3], 20.0)
    try:
        step()                                  # the first one sets things up, and may wait
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        for p in own: p.requires_grad_(False).grad = None

@pytest.mark.gpu
def test_gpu_and_cpu_agree(real):
    setup, sae, latents = real
    on_cpu = load_setup("biographies", device="cpu")
    asked = questions(setup.entities[:10], setup.prompts)
    here, there = name_residuals(on_cpu.model, on_cpu.tokenizer, asked, SITE)[0].values, name_residuals(setup.model, setup.tokenizer, asked, SITE)[0].values
    assert torch.allclose(here, there.cpu(), atol=2e-2, rtol=2e-2)
    assert answer(on_cpu.model, on_cpu.tokenizer, asked, 2) == answer(setup.model, setup.tokenizer, asked, 2)
    original = make_reference(setup, sae, latents, setup.entities[9].name).original
    assert original["target_recall"] >= 0.9 and original["perplexity_ratio"] == 1
