"The plan from shapes agrees with what PyTorch's own allocator reports, and needs no weights."
import json

import pytest
import tiny
import torch
from samu.workshop import planning
from samu.workshop.loop import configure, method_named
from samu.workshop.setups import tokens_for
from samu.workshop.store import UserError
from samu.workshop.tables import Entity, default_prompts
from torch.profiler import ProfilerActivity, profile

METHODS = ["stand_in+stand_in_residual", "npo", "simnpo", "rmu"]


def measured(work):
    "Peak bytes above what was there, from the events of PyTorch's allocator."
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        work()
    now = peak = 0
    for event in p.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def real_steps(exp, targets, method, **wishes):
    "The same two steps with real tensors: everything is allocated inside, the model too."
    from copy import deepcopy
    from dataclasses import replace
    chosen = method_named(method)
    config, later = configure(exp.settings, chosen, wishes), []

    def work():
        own = replace(exp, model=deepcopy(exp.model))
        task = planning.empty_task(own, targets, config)
        later.append(planning.cached_later(task, 4))
        with planning.matmul_dtype(own.model, config.matmul):
            with planning.FlopCounterMode(display=False) as counter:
                planning.two_steps(task, chosen, planning.MemoryTracker(), counter)

    return measured(work) + later[0]


@pytest.fixture(scope="module")
def random_setup():
    "A random Llama of 25 million parameters with a table."
    people = [Entity(n, "person", dict(town=("Paris",), job=("team",))) for n in tiny.people(30)]
    hf = tiny.model("llama", hidden=256, layers=6, vocabulary=8000)
    settings = planning.settings_for(6, 3, 256)
    return planning.Experiment("tiny", hf, tiny.tokenizer(), 3, people, default_prompts(people),
                               planning.ordinary_prose(), 0, None, settings, "")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("setup", ["random", "biographies"])
def test_within_15_percent_of_the_allocator(setup, method, request):
    exp = request.getfixturevalue("random_setup" if setup == "random" else "exp")
    targets = [exp.entities[3].name]
    found, truth = planning.plan(exp, targets, method), real_steps(exp, targets, method)
    print(setup, method, f"plan {found.peak / 2**20:.1f} MiB, measured {truth / 2**20:.1f} MiB")
    assert abs(found.peak / truth - 1) <= 0.15


def test_adapters_need_less(random_setup):
    targets = [random_setup.entities[0].name]
    whole, lora = (planning.plan(random_setup, targets, METHODS[0], lora_rank=r) for r in (0, 4))
    assert lora.trained < whole.trained / 10 and lora.optimiser < whole.optimiser and lora.peak < whole.peak


def test_a_folder_without_weights(tmp_path):
    tiny.config("llama", 600, hidden=64, layers=6).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    exp = planning.sketch(str(tmp_path))
    assert exp.layer == 3 and len(exp.entities) > 300
    assert exp.settings.reply_tokens == tokens_for(exp) > 5  # as it would be asked; it was planned with 5
    rows = planning.plan_rows(exp, exp.entities[0].name, ["stand_in+stand_in_residual", "lora", "npo"], 24.0)
    assert [r["fits"] for r in rows] == ["yes"] * 3 and float(rows[0]["peak"]) >= 0


def test_refusals(tmp_path, random_setup):
    with pytest.raises(UserError, match="no config.json"):
        planning.sketch(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type="llama", num_hidden_layers=2)))
    with pytest.raises(UserError, match="2 blocks"):
        planning.sketch(str(tmp_path))
    with pytest.raises(UserError, match="no method"):
        planning.plan(random_setup, [random_setup.entities[0].name], "nothing")


def test_exact_configurations_from_shapes():
    "Llama 3.1 8B in bfloat16: 8.03 billion parameters, 16 GB of weights, nothing allocated."
    from transformers import LlamaConfig
    config = LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                         num_attention_heads=32, num_key_value_heads=8, dtype="bfloat16")
    people = [Entity(n, "person", dict(town=("Paris",), job=("team",))) for n in tiny.people(20)]
    with planning.FakeTensorMode():
        hf = planning.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    exp = planning.Experiment("8b", hf, tiny.tokenizer(), 16, people, default_prompts(people),
                              planning.ordinary_prose(), 0, None, planning.settings_for(32, 16, 4096), "")
    ours = planning.plan(exp, [people[0].name], "stand_in+stand_in_residual", gpu=True)
    lora = planning.plan(exp, [people[0].name], "stand_in+stand_in_residual", gpu=True, lora_rank=8)
    assert abs(ours.parameters - 8.03e9) < 1e7 and abs(ours.weights - 16.06e9) < 1e8
    assert lora.peak < 24e9 and ours.peak < 40e9, (ours.peak / 1e9, lora.peak / 1e9)
