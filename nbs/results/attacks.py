"""Chapter 08 on more than one person: every family of questions, every rounding and relearning, for some
methods. Writes attacks.csv, a row for each person, method and attack, and goes on where it stopped.

    python nbs/results/attacks.py                               invented people
    python nbs/results/attacks.py --places 3,13                 some of them
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

FILE = Path(__file__).with_suffix(".csv")
PLACES = "3,13,23,33"  # in the list of people; nothing was tuned on them
METHODS = "triplet,two_sided,npo,refusal"


def main(
    places: Annotated[str, typer.Option(help="of the people, in the list of the invented world")] = PLACES,
    methods: Annotated[str, typer.Option(help="separated by commas")] = METHODS,
    file: Annotated[Path, typer.Option(help="CSV that keeps the rows")] = FILE,
):
    "Attack methods on people of the invented world."
    from samu import attacks
    from samu.evaluation import measurement
    from samu.forgetting import unlearn
    from samu.workshop.asking import family_row
    from samu.workshop.attacking import ROUNDINGS, zero_line
    from samu.workshop.experiments import run_grid
    from samu.workshop.registry import ATTACKS
    from samu.workshop.relearning import KEPT_AT_LEAST, curve, kept_by
    from samu.workshop.setups import load
    from samu.workshop.store import code_digest, digest

    torch.set_num_threads(1)
    exp = load("biographies-doors")

    def rounded(m, how):
        return attacks.rounding_table(m).set_index("rounding").loc[how].to_dict()

    def relearned(m):
        "Means over the steps, so that recall_left is the area; nan where the attack does not count."
        draw = attacks.relearn_curves
        own, before = draw(exp, m.split.target), m.before(lambda e: draw(e, m.split.target))
        if kept_by(before) < KEPT_AT_LEAST:
            return dict.fromkeys(("recall", "original", "prior"), float("nan"))
        means = [float(curve(d).mean()) for d in (own, before, zero_line(m, draw))]
        return dict(zip(("recall", "original", "prior"), means, strict=True))

    def row(cell):
        run = unlearn(exp, cell["target"], cell["method"])
        try:
            m, attack = measurement(exp, cell["target"], run), cell["attack"]
            if attack in ATTACKS:
                found = {k: v for k, v in family_row(m, ATTACKS[attack]).items() if k != "attack"}
            else:
                found = relearned(m) if attack == "relearning" else rounded(m, attack)
        finally:
            run.restore()
        room = found["original"] - found["prior"]
        return found | dict(recall_left=(found["recall"] - found["prior"]) / room if room else float("nan"))

    names = [exp.entities[int(i)].name for i in places.split(",")]
    every = [*ATTACKS, *ROUNDINGS, "relearning"]
    cells = [dict(target=t, method=m, attack=a) for t in names for m in methods.split(",") for a in every]
    settings = digest(exp.id, code_digest(attacks.attack_table, attacks.relearn, attacks.rounding_table))
    run_grid(cells, row, file, settings, f"python nbs/results/{Path(__file__).name}")


if __name__ == "__main__":
    typer.run(main)
