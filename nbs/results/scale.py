"""Step time and peak memory at the shapes of Gemma 2 2B and Llama 3.1 8B, with random weights.

    python nbs/results/scale.py                       # on a GPU, about ten minutes
    python nbs/results/scale.py --small --out x.csv   # on a CPU: the same steps at small shapes, a minute

The weights are random and the texts are real, so times and memory are those of a real run, and nothing can
be said about what is forgotten. Each method takes the steps of the loop of chapter 05 with its own settings.
A row is written as soon as it is measured; rows that are there already are not made again.
"""
import argparse
import csv
import gc
import time
from dataclasses import replace
from pathlib import Path

import torch
from samu.workshop.loop import configure, method_named, prepared, training
from samu.workshop.planning import empty_task, plan
from samu.workshop.registry import RETAIN
from samu.workshop.runtime import Timer
from samu.workshop.setups import Experiment, settings_for
from samu.workshop.tables import ordinary_prose, real_entities, real_prompts
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

SHAPES = {
    "gemma-2-2b": Gemma2Config(
        vocab_size=256_000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
        num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256),
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
        rope_parameters=dict(rope_type="default", rope_theta=500_000.0)),
}
SMALL = {
    "gemma-2-2b": dict(vocab_size=2000, hidden_size=64, intermediate_size=256, num_hidden_layers=6,
                       num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16),
    "llama-3.1-8b": dict(vocab_size=2000, hidden_size=64, intermediate_size=224, num_hidden_layers=6,
                         num_attention_heads=4, num_key_value_heads=2),
}
OURS = "stand_in+stand_in_residual"
METHODS = {  # name in the table -> (method, settings)
    "ours": (OURS, {}), "ours, LoRA": (OURS, dict(lora_rank=8)), "npo": ("npo", {}),
    "npo, LoRA": ("npo", dict(lora_rank=8)), "simnpo": ("simnpo", {}), "rmu": ("rmu", {}),
}
SWEPT = {  # figure of cost: what is changed -> settings of `ours`
    "blocks": [dict(blocks=(b, 0)) for b in (1, 4, 8)], "prompts": [dict(in_passing=n) for n in (0, 24, 48)],
    "width": [dict(d_sae=n) for n in (4096, 16_384, 65_536)], "people": [dict(people=n) for n in (1, 5, 20)],
}


def tokenizer():
    "A byte-level tokenizer made of the package's own texts: lengths as real ones, no download."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1900, special_tokens=["<pad>", "<s>", "</s>"],
                                  show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = ordinary_prose()["loss"] + [p.text for p in real_prompts()] + [e.name for e in real_entities()]
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    ends = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=made, **ends)


def random_experiment(config, device, dtype):
    "An experiment of random weights on the package's people; every name counts as known."
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    blocks = config.num_hidden_layers
    settings = settings_for(blocks, blocks // 2, config.hidden_size)
    return Experiment("random", hf.eval().requires_grad_(False), tokenizer(), blocks // 2, real_entities(),
                      real_prompts(), ordinary_prose(), 0, None, settings, "")


def measure(exp, method, wishes, steps, people=1):
    "Seconds of a step and peak memory of a few steps of the real loop."
    chosen = method_named(method)
    config = configure(exp.settings, chosen, dict(wishes, steps=steps))
    names = [e.name for e in exp.entities[:people]]
    with Timer(exp.device) as timer:
        with torch.device(exp.device):
            task = empty_task(exp, names, replace(config, retain_texts=480))
        loss, draws = prepared(task, chosen)
        with training(exp, config, 0) as trainer:
            timer.marks.clear()
            timer.lap()
            for drawn in draws:
                loss(0).backward()
                for batch in drawn:
                    (RETAIN[task.config.retain].loss(task, batch) / len(drawn)).backward()
                trainer.step()
                timer.lap()
    return dict(step_ms=round(timer.step_ms, 2), peak_gb=round(timer.peak_mb * 2**20 / 1e9, 3))


def cells():
    "(shape, about, label, method, settings) of all rows."
    for shape in SHAPES:
        for label, (method, wishes) in METHODS.items():
            yield shape, "methods", label, method, wishes
    for about, values in SWEPT.items():
        for wishes in values:
            value = next(iter(wishes.values()))
            yield "gemma-2-2b", about, str(value[0] if about == "blocks" else value), OURS, wishes


def changed(exp, about, wishes):
    "The experiment and settings of a row of the figure."
    people = wishes.get("people", 1)
    if about == "width":
        settings = replace(exp.settings, sae=exp.settings.sae | wishes)
        return replace(exp, settings=settings), {}, people
    if about == "blocks":
        first = max(0, exp.layer - wishes["blocks"][0] + 1)
        return exp, dict(blocks=(first, exp.layer)), people
    return exp, {k: v for k, v in wishes.items() if k != "people"}, people


def main():
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--small", action="store_true", help="small shapes, for a test")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scale.csv"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="separated by commas")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        parser.error("there is no GPU; --small tries the script at small shapes")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    done = list(csv.DictReader(options.out.open(encoding="utf-8"))) if options.out.is_file() else []
    exp, loaded = None, None
    for shape, about, label, method, wishes in cells():
        if shape not in options.shapes.split(","):
            continue
        if any((r["shape"], r["about"], r["label"]) == (shape, about, label) for r in done):
            continue
        if shape != loaded:
            exp = None
            gc.collect()
            if options.small:
                SHAPES[shape].update(SMALL[shape])
                if hasattr(SHAPES[shape], "layer_types"):
                    SHAPES[shape].layer_types = SHAPES[shape].layer_types[:SHAPES[shape].num_hidden_layers]
            exp, loaded = random_experiment(SHAPES[shape], device, dtype), shape
        start = time.perf_counter()
        this, settings, people = (exp, wishes, 1) if about == "methods" else changed(exp, about, wishes)
        names = [e.name for e in this.entities[:people]]
        planned = plan(this, names, method, dtype, device == "cuda", **settings)
        row = dict(shape=shape, about=about, label=label, card=card, dtype=str(dtype).removeprefix("torch."))
        try:
            row |= measure(this, method, settings, options.steps, people)
        except torch.OutOfMemoryError:
            row |= dict(step_ms="", peak_gb="out of memory")
        row |= dict(planned_gb=round(planned.peak / 1e9, 3), trained=planned.trained)
        done.append(row)
        with options.out.open("w", newline="", encoding="utf-8") as f:
            table = csv.DictWriter(f, list(dict.fromkeys(k for r in done for k in r)))
            table.writeheader()
            table.writerows(done)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print(f"{shape} {about} {label}: {row['step_ms']} ms, {row['peak_gb']} GB, planned "
              f"{row['planned_gb']} GB, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
