"""Which metrics tell models that know somebody from models that do not: writes trust.csv, a row for each
model, state and person, and goes on where it stopped.

    python nbs/results/trust.py              a quarter of an hour on one core; two models are trained first
    python nbs/results/trust.py --people 5   more people

Models that know: three that were trained from different random weights. Models that do not: four that were
trained without ten people each. Each is measured as it is, rounded to 8 bits, and after a short training on
facts about other people.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

FILE = Path(__file__).with_suffix(".csv")
BEHAVIOUR = ["target_recall", "begins_recall", "excess", "prior_gap", "recall_left", "retain_recall",
             "retain_ratio", "unknown_rate", "unknown_ratio", "perplexity", "lens_excess"]
INSIDE = ["probe_known", "lineup_hit", "lineup_auc", "lineup_probe", "lineup_distance", "lineup_surprise",
          "lineup_below", "refit_auc", "refit_kernel_auc", "refit_held_out", "truth_rank"]


@cache
def original():
    "The model that priors come from. It is never changed."
    from samu.workshop.setups import load

    return load("biographies")


@cache
def model(name: str, seed: int, digit: int):
    "A model that knows everybody, or one without ten people. Names and roles are those of the original."
    from samu.workshop.setups import load, reference_group, retrained

    base, exp = original(), load("biographies")
    away = reference_group(exp, exp.entities[digit].name)
    made = retrained(exp, away if name == "without" else [], seed)
    kept = {part: tuple(e for e in getattr(base.roles, part) if e.name not in away)
            for part in ("retain", "held_out")}
    made.grades, made.known, made.unknown = base.grades, base.known, base.unknown
    made.roles = replace(base.roles, **kept)
    return made


@contextmanager
def relearned(exp: Any, away: list[str]):
    "A short training on facts of other people, kept for as long as the block lasts."
    import torch
    from samu.entities import few_prompts, questions
    from samu.workshop.batching import answer_spans, batches
    from samu.workshop.lm import answer_loss, trained_weights, weights_kept

    others = [e for e in exp.roles.retain if e.name not in away][:20]
    asked = questions(others, few_prompts(exp.prompts, 1, "loss"), "loss")
    texts = batches(exp.tokenizer, answer_spans((q.text, q.answers[0]) for q in asked), device=exp.device)
    with weights_kept(exp.model):
        own = [p.requires_grad_(True) for p in trained_weights(exp.model, "all", "all", exp.layer).values()]
        optimizer = torch.optim.AdamW(own, lr=3e-4, weight_decay=0.0)
        for _ in range(10):
            with torch.enable_grad():
                answer_loss(exp.model, texts).backward()
            optimizer.step()
            optimizer.zero_grad()
        yield


def changed(exp: Any, how: str, away: list[str]):
    "The model as it is, rounded, or trained on."
    from samu.workshop.attacking import rounded_weights

    if how == "plain":
        return nullcontext()
    return rounded_weights(exp, how) if how == "8 bits" else relearned(exp, away)


def row(cell: dict[str, Any]) -> dict[str, float]:
    "Measure one model about one person."
    import torch
    from samu.evaluation import groups_of, probes_without
    from samu.entities import split_for
    from samu.workshop.measuring import Measurement, Reference, measured
    from samu.workshop.setups import reference_group

    torch.set_num_threads(1)
    base, digit = original(), int(cell["digit"])
    made = model(cell["model"], int(cell["seed"]), digit)
    split, away = split_for(base, cell["target"]), reference_group(base, base.entities[digit].name)
    split = replace(split, held_out=tuple(e for e in split.held_out if e.name not in away))
    asked = groups_of(base, split, away)
    probes_without(made, cell["target"])  # fitted on the model as it was trained, and kept
    with changed(made, cell["how"], away):
        state = None if cell["how"] == "plain" else f"{cell['how']} {made.model_hash} {digit}"
        now = replace(made, applied=state)
        now.__dict__.update({k: made.__dict__[k] for k in ("grades", "known", "roles", "unknown")})
        said = measured(Measurement(now, split, None, Reference(base, nullcontext), asked), BEHAVIOUR)
        own = Measurement(now, split, None, Reference(made, nullcontext), asked)
        found = measured(own, INSIDE)
    return {k: v for k, v in {**said, **found}.items() if k != "notes"}


def main(
    people: Annotated[int, typer.Option(help="of each ten that were left out")] = 3,
    file: Annotated[Path, typer.Option(help="CSV that keeps the rows")] = FILE,
) -> None:
    "Measure every model about people whom one pool knows and the other does not."
    import samu.attacks
    import samu.workshop.witnesses
    from samu.evaluation import groups_of, probes_without
    from samu.workshop.experiments import run_grid
    from samu.workshop.registry import METRICS
    from samu.workshop.store import code_digest, digest

    exp = original()
    pools = [("knows", seed, digit) for digit in (7, 3) for seed in (0, 1, 2)]
    pools += [("without", seed, digit) for digit in (7, 3) for seed in (0, 1)]
    states = ("plain", "8 bits", "relearned")
    cells = [dict(how=how, model=name, seed=seed, digit=digit, target=exp.entities[digit + 10 * i].name)
             for how in states for name, seed, digit in pools for i in range(people)]
    measures = [METRICS[n].measure for n in [*BEHAVIOUR, *INSIDE]]
    settings = digest(exp.id, code_digest(groups_of, probes_without, *measures))
    rows = run_grid(cells, row, file, settings, "python nbs/results/trust.py")
    print(f"{len(rows)} rows; metrics of {samu.attacks.__name__} and {samu.workshop.witnesses.__name__}")


if __name__ == "__main__":
    typer.run(main)
