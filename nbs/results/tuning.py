"""Chapter 07's grid: every method with six values on two validation people (tuning.csv), then with its best
value on three test people (methods.csv). Goes on where it stopped.

    python nbs/results/tuning.py                      all of it (half an hour on one core)
    python nbs/results/tuning.py --workers 4          the same in four processes
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

HERE = Path(__file__).parent
METHODS = (
    "triplet,match,two_sided,mean_residual,triplet_random,"
    "ga,graddiff,npo,simnpo,idk_dpo,refusal,rmu,crisp,clamp"
)
VALIDATION, TEST = (11, 58), (3, 42, 77)  # places in the list of people: to tune on, and to report on
COMMAND = "python nbs/results/tuning.py"


def main(
    methods: Annotated[str, typer.Option(help="separated by commas")] = METHODS,
    workers: Annotated[int, typer.Option(help="processes that share the work")] = 1,
    folder: Annotated[Path, typer.Option(help="gets tuning.csv and methods.csv")] = HERE,
):
    "Tune every method on the validation people, then run it with its best value on the test people."
    from samu.baselines import STEPS, STRENGTHS, best_values, sweep
    from samu.workshop.setups import load

    torch.set_num_threads(1)
    exp = load("biographies")
    tune, test = ([exp.entities[i].name for i in places] for places in (VALIDATION, TEST))
    grid = {m: STRENGTHS if m == "clamp" else STEPS for m in methods.split(",")}
    rows = sweep(exp, tune, grid, folder / "tuning.csv", workers=workers, command=COMMAND)
    best = {m: (v,) for m, v in best_values(rows).items()}
    sweep(exp, test, best, folder / "methods.csv", workers=workers, command=COMMAND)


if __name__ == "__main__":
    typer.run(main)
