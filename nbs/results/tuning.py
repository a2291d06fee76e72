"""Chapter 07's search: every method chooses among 25 configurations on six validation people (tuning.csv),
and runs with its choice on three test people (methods.csv). Goes on where it stopped; several processes may
share the work, each with methods of its own.

    python nbs/results/tuning.py                             all of it (two hours on one core)
    python nbs/results/tuning.py --methods npo,simnpo,rmu    some methods
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

HERE = Path(__file__).parent
METHODS = (
    "triplet,match,two_sided,mean_residual,stand_in+stand_in_residual,triplet_random,"
    "ga_tuned,graddiff,npo,simnpo,idk_dpo,refusal,rmu,crisp,clamp"
)
VALIDATION, TEST = (11, 58, 20, 39, 64, 92), (3, 42, 77)  # places in the list of people
COMMAND = "python nbs/results/tuning.py"


def main(
    methods: Annotated[str, typer.Option(help="separated by commas")] = METHODS,
    workers: Annotated[int, typer.Option(help="processes that share a method's runs")] = 1,
    folder: Annotated[Path, typer.Option(help="gets tuning.csv and methods.csv")] = HERE,
):
    "Let every method choose on the validation people, then run it with its choice on the test people."
    from samu.workshop.setups import load
    from samu.workshop.tuning import tune, tuning_rows

    torch.set_num_threads(1)
    exp = load("biographies")
    people, test = ([exp.entities[i].name for i in places] for places in (VALIDATION, TEST))
    for name in methods.split(","):
        chosen = tune(exp, people, name, file=folder / "tuning.csv", workers=workers, command=COMMAND)
        print(name, chosen, flush=True)
        tuning_rows(exp, test, {name: [chosen]}, folder / "methods.csv", workers, COMMAND)


if __name__ == "__main__":
    typer.run(main)
