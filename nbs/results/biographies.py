"""Every method on eight people with three seeds, under everything that chapters 06 and 08 measure: writes
biographies.csv, a row at a time, and goes on where it stopped.

    python nbs/results/biographies.py                               all of it (some hours on one core)
    python nbs/results/biographies.py --methods two_sided,triplet   some methods
    python nbs/results/biographies.py --workers 4                   the same in four processes
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

FILE = Path(__file__).with_suffix(".csv")
PLACES = "3,13,23,33,57,67,77,87"  # in the list of people; nothing was tuned on them
METHODS = (
    "two_sided,triplet,match,mean_residual,triplet_random,"
    "ga,ga_tuned,graddiff,npo,simnpo,idk_dpo,refusal,rmu,crisp"
)


def main(
    methods: Annotated[str, typer.Option(help="separated by commas")] = METHODS,
    places: Annotated[str, typer.Option(help="of the people, in the list of the invented world")] = PLACES,
    seeds: Annotated[str, typer.Option(help="of the choice and order of retained texts")] = "0,1,2",
    workers: Annotated[int, typer.Option(help="processes that share the work")] = 1,
    file: Annotated[Path, typer.Option(help="CSV that keeps the rows")] = FILE,
):
    "Measure methods on people of the invented world, beside models retrained without them."
    import samu.attacks  # registers its metrics
    from samu.evaluation import compare
    from samu.workshop.registry import METRICS
    from samu.workshop.setups import load

    torch.set_num_threads(1)
    exp, command = load("biographies"), f"python nbs/results/{Path(__file__).name}"
    for seed in map(int, seeds.split(",")):  # a whole table with one seed first
        for place in map(int, places.split(",")):
            names, target = ["retrained", *methods.split(",")], exp.entities[place].name
            compare(exp, [target], names, [seed], file, workers, list(METRICS), gold=True, command=command)
    print(f"{len(METRICS)} metrics, with those of {samu.attacks.__name__}")


if __name__ == "__main__":
    typer.run(main)
