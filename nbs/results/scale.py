"""Step time and peak memory at the shapes of Gemma 2 2B and Llama 3.1 8B, with random weights.

    python nbs/results/scale.py              # on a GPU: every row that was not measured this way
    python nbs/results/scale.py --missing    # on a GPU: only rows of a sweep that have no numbers at all
    python nbs/results/scale.py --plan       # on any machine: what the plan says of each measured row
    python nbs/results/scale.py --small --out x.csv   # on a CPU: the same steps at small shapes, a minute

The weights are random and the texts are real, so times and memory are those of a real run, and nothing can
be said about what is forgotten. Each method takes the steps of the loop of chapter 05 with its own settings.
Before the first row of a model a run is thrown away, and so are the first steps of each row; `step_ms` is the
median of the others. `ours, again` is the first row once more, after NPO.

A row is written as soon as it is measured. The column `way` says how; rows measured in another way than the
present one, or before there was this column (six steps, none thrown away), are measured again and replaced.
"""
import argparse
import csv
import gc
import time
from dataclasses import replace
from pathlib import Path

import torch
from samu.workshop.lm import trained_weights
from samu.workshop.loop import configure, method_named, prepared, training
from samu.workshop.planning import FakeTensorMode, empty_task, plan
from samu.workshop.registry import RETAIN
from samu.workshop.runtime import Timer
from samu.workshop.setups import Experiment, settings_for
from samu.workshop.tables import ordinary_prose, real_entities, real_prompts
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig
from transformers.initialization import no_init_weights

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
TEXTS, OLD_STEPS = 480, 6  # retained texts of a row; steps of rows without a `way`
COLUMNS = ("shape", "about", "label", "card", "dtype", "step_ms", "peak_gb", "planned_gb", "trained", "way",
           "plan_gb")  # planned_gb: by the plan of that time, for a whole run
METHODS = {  # name in the table -> (method, settings)
    "ours": (OURS, {}), "ours, LoRA": (OURS, dict(lora_rank=8)), "npo": ("npo", {}),
    "ours, again": (OURS, {}), "npo, LoRA": ("npo", dict(lora_rank=8)), "simnpo": ("simnpo", {}),
    "rmu": ("rmu", {}),
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


def measure(exp, method, wishes, people, warm_up, steps):
    "Median step and peak memory of the real loop; the first steps are not timed."
    chosen = method_named(method)
    config = configure(exp.settings, chosen, dict(wishes, steps=warm_up + steps, retain_texts=TEXTS))
    names = [e.name for e in exp.entities[:people]]
    with Timer(exp.device) as timer:
        with torch.device(exp.device):
            task = empty_task(exp, names, config)
        loss, draws = prepared(task, chosen)
        with training(exp, config, 0) as trainer:
            for step, drawn in enumerate(draws):
                if step == warm_up:
                    timer.marks.clear()
                    timer.lap()
                loss(0).backward()
                for batch in drawn:
                    (RETAIN[task.config.retain].loss(task, batch) / len(drawn)).backward()
                trainer.step()
                timer.lap()
    peak, trained = timer.peak_mb * 2**20 / 1e9, sum(p.numel() for p in trainer.own)
    return dict(step_ms=round(timer.step_ms, 2), peak_gb=round(peak, 3), trained=trained)


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


def settings_of(exp, about, wishes):
    "The experiment, settings and number of people of a row."
    return (exp, wishes, 1) if about == "methods" else changed(exp, about, wishes)


def planned(exp, cell, row):
    "What the plan says of a row, GB: of just the steps that were measured."
    _, about, _, method, wishes = cell
    this, wishes, people = settings_of(exp, about, wishes)
    way = [int(word) for word in row["way"].split() if word.isdigit()] or [OLD_STEPS]
    wishes = dict(wishes, steps=sum(way), retain_texts=TEXTS)
    names = [e.name for e in this.entities[:people]]
    found = plan(this, names, method, getattr(torch, row["dtype"]), row["card"] != "cpu", **wishes).peak
    if not row["way"]:  # then the GPU held the trained weights as they were, too
        config = configure(this.settings, method_named(method), wishes)
        own = trained_weights(this.model, config.blocks, config.weights, this.layer)
        found += sum(p.numel() * p.element_size() for p in own.values())
    return round(found / 1e9, 3)


def shapes_only(config):
    "An experiment of fake tensors."
    with no_init_weights(), FakeTensorMode():
        return random_experiment(config, "cpu", torch.bfloat16)


def read(file):
    "(shape, about, label) -> row."
    rows = list(csv.DictReader(file.open(encoding="utf-8"))) if file.is_file() else []
    return {(r["shape"], r["about"], r["label"]): dict.fromkeys(COLUMNS, "") | r for r in rows}


def write(file, rows):
    "All rows, in the order of `cells`."
    with file.open("w", newline="", encoding="utf-8") as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(rows[key] for key in (cell[:3] for cell in cells()) if key in rows)


def options_of():
    "What was asked for. Ends the program where it cannot be done."
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--small", action="store_true", help="small shapes, for a test")
    parser.add_argument("--missing", action="store_true", help="only rows of a sweep without numbers")
    parser.add_argument("--plan", action="store_true", help="measure nothing: plan the rows that are there")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scale.csv"))
    parser.add_argument("--steps", type=int, default=12, help="timed, of each row")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="separated by commas")
    options = parser.parse_args()
    if not (options.small or options.plan or torch.cuda.is_available()):
        parser.error("there is no GPU; --small tries the script at small shapes")
    return options


def make_small():
    "Turn the shapes into small ones."
    for name, shape in SHAPES.items():
        shape.update(SMALL[name])
        if hasattr(shape, "layer_types"):
            shape.layer_types = shape.layer_types[:shape.num_hidden_layers]


def measure_row(exp, cell, options, way):
    "A row of the table."
    shape, about, label, method, wishes = cell
    card = torch.cuda.get_device_name() if exp.device.type == "cuda" else "cpu"
    row = dict.fromkeys(COLUMNS, "") | dict(zip(COLUMNS, (shape, about, label, card), strict=False))
    row |= dict(dtype=str(exp.dtype).removeprefix("torch."), way=way)
    this, wishes, people = settings_of(exp, about, wishes)
    try:
        return row | measure(this, method, wishes, people, options.warm_up, options.steps)
    except torch.OutOfMemoryError:
        return row | dict(peak_gb="out of memory")


def emptied():
    "Give back what the last row took."
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_all(options, todo, rows, way):
    "Measure rows, and write each as soon as it is there."
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exp, loaded = None, None
    for cell in todo:
        if cell[0] != loaded:
            exp = None
            emptied()
            dtype = torch.float32 if device == "cpu" else torch.bfloat16
            exp, loaded = random_experiment(SHAPES[cell[0]], device, dtype), cell[0]
            measure(exp, OURS, {}, 1, 0, options.steps)  # thrown away
            emptied()
        start = time.perf_counter()
        row = rows[cell[:3]] = measure_row(exp, cell, options, way)
        write(options.out, rows)
        emptied()
        took = f"{row['step_ms']} ms, {row['peak_gb']} GB, {time.perf_counter() - start:.0f} s"
        print(*cell[:3], took, flush=True)


def plan_all(options, todo, rows):
    "Plan rows that have no plan yet."
    exp, loaded = None, None
    for cell in todo:
        row = rows[cell[:3]]
        if cell[0] != loaded:
            exp, loaded = shapes_only(SHAPES[cell[0]]), cell[0]
        row["plan_gb"] = planned(exp, cell, row)
        write(options.out, rows)
        print(*cell[:3], f"measured {row['peak_gb']} GB, plan {row['plan_gb']} GB", flush=True)


def main():
    options = options_of()
    if options.small:
        make_small()
    rows, way = read(options.out), f"{options.warm_up} + {options.steps} steps"
    todo = [cell for cell in cells() if cell[0] in options.shapes.split(",")]
    if options.plan:
        plan_all(options, [c for c in todo if c[:3] in rows and not rows[c[:3]]["plan_gb"]], rows)
    elif options.missing:
        measure_all(options, [c for c in todo if c[1] != "methods" and c[:3] not in rows], rows, way)
    else:
        measure_all(options, [c for c in todo if rows.get(c[:3], {}).get("way") != way], rows, way)


if __name__ == "__main__":
    main()
