"""Several people forgotten, at once and in turn: writes several.csv, a row at a time, and goes on if stopped.

    python nbs/results/several.py
"""
from pathlib import Path
from typing import Annotated, Any

import typer

FILE = Path(__file__).with_suffix(".csv")
FIELDS = ["target_recall", "retain_ratio", "unknown_rate", "perplexity_ratio"]


def row(cell: dict[str, Any]) -> dict[str, float]:
    "Forget the first people of a set, and measure. Two of these took part in chapter 07's choices."
    from samu.evaluation import evaluate, measurement
    from samu.many import unlearn_many
    from samu.workshop.setups import load
    exp = load("biographies")
    chosen = [e.name for i, e in enumerate(exp.entities) if i % 5 == 2 + int(cell["seed"])]
    people = chosen[: int(cell["people"])]
    run = unlearn_many(exp, people, cell["method"], cell["way"], int(cell["seed"]))
    found = evaluate(run, FIELDS)[FIELDS].astype(float).to_dict()
    worst = max(measurement(exp, p, run).recall("target") for p in people)
    return found | dict(worst_recall=worst)


def main(
    file: Annotated[Path, typer.Option(help="CSV that keeps the rows")] = FILE,
) -> None:
    "Two sets of people; one, five and twenty of each; both ways."
    import samu.many
    from samu.workshop.experiments import run_grid
    from samu.workshop.setups import load
    from samu.workshop.store import code_digest, digest
    cells = [dict(method="triplet", seed=seed, people=n, way=way)
             for n in (1, 5, 20) for way in ("at once", "in turn") for seed in (0, 1)]
    settings = digest(load("biographies").id, code_digest(samu.many.unlearn_many))
    run_grid(cells, row, file, settings, "python nbs/results/several.py")


if __name__ == "__main__":
    typer.run(main)
