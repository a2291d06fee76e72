"""The attacker's best in chapter 08: twelve ways to fine-tune, against two methods, on people of the invented
world who are in no table of results. Writes relearn_settings.csv, and goes on where it stopped.

    python nbs/results/relearn_settings.py            all of it (half an hour on one core)
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

FILE = Path(__file__).with_suffix(".csv")
PLACES = "11,58,25,71"  # in the list of people
METHODS = ("triplet", "two_sided")


def main(
    places: Annotated[str, typer.Option(help="of the people, in the list of the invented world")] = PLACES,
    file: Annotated[Path, typer.Option(help="CSV that keeps the rows")] = FILE,
):
    "Try every setting on every person: one choice of three shown facts, one unknown name as the zero line."
    from samu.attacks import relearn
    from samu.entities import known_entity
    from samu.evaluation import measurement
    from samu.forgetting import unlearn
    from samu.workshop.attacking import unknown_names
    from samu.workshop.experiments import run_grid
    from samu.workshop.relearning import GRID, kept_by, relearning_area
    from samu.workshop.setups import load
    from samu.workshop.store import code_digest, digest

    torch.set_num_threads(1)
    exp = load("biographies-doors")

    def row(cell):
        how = next(replace(h, every=15) for h in GRID if all(getattr(h, k) == cell[k] for k in KEYS))
        target = known_entity(exp, cell["target"])
        shown = list(target.facts)[:3]
        taught = unknown_names(measurement(exp, target.name))[0]
        original, zero = (relearn(exp, e, shown, how) for e in (target, taught))
        found = {"kept": kept_by(original)}
        for method in METHODS:
            run = unlearn(exp, target.name, method)
            try:
                found[method] = relearning_area(relearn(exp, target, shown, how), original, zero)
            finally:
                run.restore()
        return found

    names = [exp.entities[int(i)].name for i in places.split(",")]
    cells = [dict(target=t) | {k: asdict(h)[k] for k in KEYS} for t in names for h in GRID]
    settings = digest(exp.id, code_digest(relearn), METHODS)
    run_grid(cells, row, file, settings, f"python nbs/results/{Path(__file__).name}")


KEYS = ("weights", "lr", "mix_weight")

if __name__ == "__main__":
    typer.run(main)
