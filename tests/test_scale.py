"""Models that are large for the machine: blocks above the site left out, adapters kept apart, every family."""
import pytest
import samu
import tiny
import torch
from safetensors.torch import load_file
from samu.workshop import lm, planning
from samu.workshop.loop import configure, method_named, prepared, training
from samu.workshop.registry import RETAIN
from samu.workshop.setups import Experiment, load
from samu.workshop.store import UserError
from samu.workshop.tables import Entity, default_prompts
from transformers import AutoModelForCausalLM

SITE = 1


def experiment(hf, tok):
    "Everybody in the table counts as known."
    people = [Entity(n, "person", dict(town=("Paris",), job=("team",))) for n in tiny.people(20)]
    settings = planning.settings_for(4, SITE, 32)
    return Experiment("tiny", hf, tok, SITE, people, default_prompts(people), planning.ordinary_prose(), 0, None,
                      settings, "")


def train(exp, method, steps=20):
    "Steps of the real loop, toward a made-up aim."
    chosen = method_named(method)
    config = configure(exp.settings, chosen, dict(steps=steps, blocks="site", retain_texts=40))
    torch.manual_seed(0)
    task = planning.empty_task(exp, [exp.entities[0].name], config)
    for field in (task.frozen.own, task.frozen.stand_in):
        field.normal_()
    task.aim.mean_residual.normal_()
    task.aim.scale.fill_(1)
    loss, draws = prepared(task, chosen)
    with training(exp, config, 0) as trainer:
        for step, drawn in enumerate(draws):
            loss(step).backward()
            for batch in drawn:
                RETAIN[chosen.retain].loss(task, batch).backward()
            trainer.step()
    return trainer.weights


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_the_blocks_above_the_site(family, tmp_path):
    folder, hf, tok = tiny.save(tmp_path / "model", family)
    whole, _ = lm.load_lm(folder, "cpu", torch.float32)
    part, _ = lm.load_lm(folder, "cpu", torch.float32, site=SITE)
    assert lm.anatomy(part).n_layers == SITE + 1 and part.num_parameters() < whole.num_parameters()
    long = train(experiment(whole, tok), "stand_in_residual")
    short = train(experiment(part, tok), "stand_in_residual")
    assert long.keys() == short.keys()
    for k in long:
        torch.testing.assert_close(short[k], long[k], rtol=0, atol=1e-6)
    before = dict(hf.named_parameters())
    assert any(not torch.equal(p, before[k]) for k, p in short.items())
    if family == "gemma3" and not short.keys() <= load_file(folder / "model.safetensors").keys():
        with pytest.raises(UserError, match="has no safetensors weight"):
            lm.save_trained(folder, tmp_path / "out", short)
        return
    saved = AutoModelForCausalLM.from_pretrained(lm.save_trained(folder, tmp_path / "out", short))
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(saved(ids).logits, whole(ids).logits, rtol=1e-5, atol=1e-5)


def test_what_needs_the_answers_is_refused(tmp_path):
    folder, _, tok = tiny.save(tmp_path / "model")
    part, _ = lm.load_lm(folder, "cpu", torch.float32, site=SITE)
    with pytest.raises(UserError, match="blocks above the site are not loaded"):
        train(experiment(part, tok), "npo", 1)
    with pytest.raises(UserError, match="no block lies above layer 3"):
        lm.load_lm(folder, "cpu", torch.float32, site=3)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_unlearn_save_reload(family, tmp_path):
    "An adapter lies beside the merged model, and gives the same logits on the original."
    from peft import PeftModel
    folder, hf, tok = tiny.save(tmp_path / "model", family)
    table = tiny.own_answers(tmp_path / "mine.csv", hf, tok, tiny.people(30))
    exp = load(str(folder), people=str(table), device="cpu", dtype=torch.float32)
    run = samu.unlearn(exp, exp.known[0].name, method="stand_in_residual", steps=5, lora_rank=2)
    saved = run.save(tmp_path / "out")
    ids = torch.arange(3, 12)[None]
    merged = AutoModelForCausalLM.from_pretrained(saved)
    torch.testing.assert_close(merged(ids).logits, exp.model(ids).logits, rtol=1e-4, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.allclose(base(ids).logits, merged(ids).logits, atol=1e-4)
    adapted = PeftModel.from_pretrained(base, saved / "adapter")
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
