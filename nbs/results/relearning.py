"""Relearning on Gemma: curves of four people on whom settings were chosen, so no test. Writes
relearning.csv; goes on where it stopped. The rows "npo, as sealed" have the setting of the sealed test, which
was npo's until 28 November 2026.

    python nbs/results/relearning.py                                        all: an hour or two on two cores
    python nbs/results/relearning.py --people "Joe Montana;Marie Curie"     a part, as on another machine
"""

from pathlib import Path
from typing import Annotated

import typer

FILE = Path(__file__).with_suffix(".csv")
PEOPLE = ("Joe Montana", "Richard Nixon", "Marie Curie", "Beyoncé")
RESIDUAL = "stand_in_residual+stand_in_residual"  # without the dictionary, at the same summed weight
MODELS = ("original", "unknown name", "stand_in+stand_in_residual", RESIDUAL, "npo", "refusal")


def main(
    people: Annotated[str, typer.Option(help="names, with a semicolon between two")] = ";".join(PEOPLE),
    models: Annotated[str, typer.Option(help="original, unknown name, methods")] = ";".join(MODELS),
    file: Annotated[Path, typer.Option(help="CSV that keeps the rows")] = FILE,
):
    "Rows by person, model, choice of what is shown, and step: recall of what is shown and of the rest."
    from samu.attacks import relearn_curves
    from samu.entities import known_entity
    from samu.evaluation import measurement
    from samu.forgetting import unlearn
    from samu.workshop.attacking import unknown_names
    from samu.workshop.experiments import run_grid
    from samu.workshop.relearning import attack_for
    from samu.workshop.setups import load
    from samu.workshop.store import code_digest, digest

    exp = load("gemma-3-270m")
    how, curves = attack_for(exp), {}

    def draws(target, model):
        if model == "unknown name":
            return relearn_curves(exp, unknown_names(measurement(exp, target))[0])
        run = None if model == "original" else unlearn(exp, target, model)
        try:
            return relearn_curves(exp, known_entity(exp, target))
        finally:
            if run:
                run.restore()

    def row(cell):
        key = cell["target"], cell["model"]
        if key not in curves:
            curves[key] = draws(*key).set_index(["draw", "step"])
        return curves[key].loc[(cell["draw"], cell["step"])].to_dict()

    steps = range(0, how.steps + 1, how.every)
    cells = [dict(target=t, model=m, draw=d, step=s)
             for m in models.split(";") for t in people.split(";") for d in range(3) for s in steps]
    settings = digest(exp.id, code_digest(relearn_curves), vars(how))
    run_grid(cells, row, file, settings, f"python nbs/results/{Path(__file__).name}")


if __name__ == "__main__":
    typer.run(main)
