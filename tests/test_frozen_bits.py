"""Frozen weights in 8 or 4 bits, and blocks on several devices: what is trained and saved stays in full."""
import json
from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch
from accelerate.hooks import attach_align_device_hook_on_blocks
from safetensors.torch import load_file
from samu.forgetting import unlearn
from samu.workshop import lm, planning
from samu.workshop.registry import SETUPS, UserError, register_setup
from samu.workshop.setups import load
from transformers import AutoModelForCausalLM

IDS = torch.arange(3, 12)[None]


@pytest.fixture
def bits():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed; pip install bitsandbytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Six blocks of width 64 that know everybody in their table."
    place, hf, tok = tiny.save(tmp_path_factory.mktemp("whole") / "m", "llama", layers=6, hidden=64)
    tiny.own_answers(place / "entities.csv", hf, tok, tiny.people(40))
    return place


def quantised(hf):
    return {k for k, p in hf.named_parameters() if not p.is_floating_point()}


@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_trained_and_read_stays_in_full(bits, family, width, tmp_path):
    place, hf, _ = tiny.save(tmp_path / "m", family, hidden=64)
    own = partial(lm.trained_weights, blocks=(1, 2), weights="down", site=2)
    few, _ = lm.load_lm(place, "cpu", torch.float32, frozen_bits=width, trained=own)
    whole = dict(hf.named_parameters())
    names = quantised(few)
    assert names and not names & own(few).keys() and all(k in whole and whole[k].ndim == 2 for k in names)
    assert not any(k.startswith(("lm_head", "embed_out")) or "embed" in k or ".wte." in k for k in names)
    for k, p in few.named_parameters():
        assert k in names or torch.equal(p, whole[k])
    theirs, ours = (lm.residuals(m, IDS, 2) for m in (hf, few))
    assert 0 < (theirs - ours).norm() / theirs.norm() < (0.6 if width == 4 else 0.05)  # width 64: coarse
    p = next(iter(own(few).values())).requires_grad_(True)
    lm.residuals(few, IDS, 2).pow(2).mean().backward()
    assert p.grad.abs().sum() > 0
    with pytest.raises(UserError, match="frozen in few bits"):
        lm.trained_weights(few, "all", "mlp", 2)


@pytest.mark.parametrize("width, rank", [(8, 0), (4, 0), (4, 2)])
def test_unlearn_and_save_in_full(bits, folder, width, rank, tmp_path):
    exp = load(str(folder), device="cpu", dtype="float32", frozen_bits=width)
    table = tiny.own_answers(tmp_path / "mine.csv", exp.model, exp.tokenizer, tiny.people(40))
    exp = load(str(folder), people=str(table), device="cpu", dtype="float32", frozen_bits=width)
    assert exp.id != load(str(folder), people=str(table), device="cpu", dtype="float32").id and exp.frozen_bits == width
    small = replace(exp.settings, sae=exp.settings.sae | dict(samples=4000, texts=300))
    exp = replace(exp, settings=small)
    run = unlearn(exp, exp.known[0].name, "stand_in_residual", steps=5, lr=0.01, lora_rank=rank, keep=False)
    saved, source = load_file(run.save(tmp_path / "out") / "model.safetensors"), load_file(folder / "model.safetensors")
    changed = {k for k in source if not torch.equal(saved[k], source[k])}
    assert saved.keys() == source.keys() and changed == run.changed.keys()
    assert all(torch.equal(saved[k], run.changed[k]) for k in changed)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert (plain(IDS).logits - exp.model(IDS).logits).abs().max() > 0  # the model in memory is rounded, this one not
    again = load(str(tmp_path / "out"), device="cpu", dtype="float32")
    assert again.base is not None and again.frozen_bits is None
    with pytest.raises(UserError, match="leave frozen_bits out"):
        load(str(tmp_path / "out"), frozen_bits=4)
    if rank:
        assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("width", [8, 4])
def test_the_plan_counts_the_bits(bits, width, tmp_path):
    place, _, tok = tiny.save(tmp_path / "m", "llama", layers=6, hidden=256, vocabulary=2000)
    tiny.own_answers(place / "entities.csv", tiny.model("llama"), tok, tiny.people(12))
    exp = planning.sketch(str(place))
    own = partial(lm.trained_weights, blocks=exp.settings.loop.blocks, weights="down", site=exp.layer)
    few, _ = lm.load_lm(place, "cpu", torch.float32, frozen_bits=width, trained=own)
    states = [m.weight.quant_state.absmax for m in few.modules() if hasattr(getattr(m, "weight", 0), "quant_state")]
    states += [m.weight.SCB for m in few.modules() if hasattr(getattr(m, "weight", 0), "SCB")]
    truth = sum(t.untyped_storage().nbytes() for t in [*few.parameters(), *states])
    name = exp.entities[0].name
    full, found = (planning.plan(exp, [name], exp.settings.objective, torch.float32, frozen_bits=b)
                   for b in (None, width))
    assert full.weights > 1.5 * truth and abs(found.weights / truth - 1) < 0.01
    assert found.peak < full.peak
    with pytest.raises(UserError, match="would be trained, but is frozen in few bits"):
        planning.plan(exp, [name], "npo", torch.float32, frozen_bits=width)


def test_refusals(folder, monkeypatch):
    with pytest.raises(UserError, match="frozen_bits is 8 or 4, not 3"):
        load(str(folder), device="cpu", frozen_bits=3)
    register_setup("takes-none", lambda device=None: None, needs="nothing")
    with pytest.raises(UserError, match="'takes-none' got an unexpected keyword argument 'frozen_bits'"):
        load("takes-none", frozen_bits=4)
    del SETUPS["takes-none"]
    monkeypatch.setattr(lm, "find_spec", lambda name: None if name == "bitsandbytes" else 1)
    with pytest.raises(UserError, match="needs the package bitsandbytes; install it with pip install bitsandbytes"):
        load(str(folder), device="cpu", frozen_bits=4)


# --- Several devices


def check_spread(hf, tok, devices):
    "A model whose blocks lie on these devices in turn reads, writes and trains like the one on the first."
    spread = tiny.model("llama", layers=6, hidden=64, fresh=True)
    places = {"model.embed_tokens": devices[0], "model.rotary_emb": devices[0], "model.norm": devices[-1]}
    places |= {f"model.layers.{i}": devices[i * len(devices) // 6] for i in range(6)} | {"lm_head": devices[-1]}
    for name, device in places.items():
        spread.get_submodule(name).to(device)
    attach_align_device_hook_on_blocks(spread, execution_device={"": devices[0]} | places)
    hf, ids = hf.to(devices[0]), IDS.to(devices[0])
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    h = lm.residuals(hf, ids, 2)
    for layer in range(6):
        close(lm.residuals(spread, ids, layer), lm.residuals(hf, ids, layer))
    with lm.starting_at(spread, 4, lm.residuals(spread, ids, 3)):
        close(lm.residuals(spread, ids, 5), lm.residuals(hf, ids, 5))
    changed = []
    for m in (hf, spread):
        with lm.edit_residual(m, 4, lambda x: x + h):
            changed.append(lm.logits(m, lm.final_hidden(m, ids)))
    close(changed[1], changed[0])
    texts = ["The town of Anna Abbot is", "He lives"]
    assert lm.generate(spread, tok, texts, 4) == lm.generate(hf, tok, texts, 4)
    losses = []
    for m in (hf, spread):
        own = list(lm.trained_weights(m, "all", "down", 5).values())
        copies = lm.float32_copies([p.requires_grad_(True) for p in own])
        optimiser = torch.optim.AdamW(copies, lr=0.01)
        for _ in range(3):
            loss = lm.final_hidden(m, ids).pow(2).mean() + lm.logits(m, lm.final_hidden(m, ids)).pow(2).mean()
            loss.backward()
            lm.optimizer_step(optimiser, copies, own)
        losses.append(loss.detach())
    close(losses[1], losses[0])


def test_accelerates_hooks_and_ours():
    check_spread(tiny.model("llama", layers=6, hidden=64, fresh=True), tiny.tokenizer(), ["cpu", "cpu"])


@pytest.mark.gpu
def test_blocks_on_two_devices():
    hf = tiny.model("llama", layers=6, hidden=64, fresh=True)
    check_spread(hf, tiny.tokenizer(), ["cuda:0", "cuda:1" if torch.cuda.device_count() > 1 else "cpu"])


@pytest.mark.gpu
def test_auto_on_a_gpu(folder):
    exp = load(str(folder), device="auto", dtype="float32")
    assert exp.device.type == "cuda" and len(exp.ask([])) == 0
    unlearn(exp, exp.known[0].name, "stand_in_residual", steps=2, keep=False).restore()
