"""The attacker's best: ways to fine-tune, against a few methods, on people whom no table reports. Goes on where
it stopped.

    python nbs/results/relearn_settings.py            the invented world: relearn_settings.csv (half an hour)
    python nbs/results/relearn_settings.py --setup gemma-3-270m        relearn_settings_gemma.csv (two hours)
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).parent
WORLD = ("Rozi Zobon", "Pora Fapon", "Base Doten", "Zebu Pifen")
SETUPS = {  # people, methods, file
    "biographies-doors": (WORLD, ("triplet", "two_sided"), "relearn_settings.csv"),
    "gemma-3-270m": (("Joe Montana", "Richard Nixon", "Marie Curie", "Beyoncé"),
                     ("stand_in+stand_in_residual",), "relearn_settings_gemma.csv")}


def main(
    setup: Annotated[str, typer.Option(help=" or ".join(SETUPS))] = "biographies-doors",
    file: Annotated[Path | None, typer.Option(help="CSV that keeps the rows; the setup's own if left out")] = None,
):
    "Try every setting on every person: one choice of the shown facts, one unknown name as the zero line."
    from samu.attacks import relearn
    from samu.entities import known_entity
    from samu.evaluation import measurement
    from samu.forgetting import unlearn
    from samu.workshop.attacking import unknown_names
    from samu.workshop.experiments import run_grid
    from samu.workshop.relearning import (
        GRID, KEPT_AT_LEAST, LARGE_GRID, SETTINGS, kept_by, picks, relearning_area)
    from samu.workshop.runtime import threads_for
    from samu.workshop.setups import load
    from samu.workshop.store import code_digest, digest

    exp = load(setup)
    people, methods, name = SETUPS[setup]
    grid = GRID if setup == "biographies-doors" else LARGE_GRID

    def row(cell):
        how = next(replace(h, every=h.steps // 4) for h in grid
                   if all(getattr(h, k) == cell[k] for k in SETTINGS))
        target = known_entity(exp, cell["target"])
        shown = picks(list(target.facts))[0]
        original = relearn(exp, target, shown, how)
        found = {"kept": kept_by(original)} | dict.fromkeys(methods, float("nan"))
        if found["kept"] < KEPT_AT_LEAST:  # it does not count, whatever it brings back
            return found
        zero = relearn(exp, unknown_names(measurement(exp, target.name))[0], shown, how)
        for method in methods:
            run = unlearn(exp, target.name, method)
            try:
                found[method] = relearning_area(relearn(exp, target, shown, how), original, zero)
            finally:
                run.restore()
        return found

    cells = [dict(target=t) | {k: asdict(h)[k] for k in SETTINGS} for h in grid for t in people]
    settings = digest(exp.id, code_digest(relearn), methods)
    with threads_for(exp.model):
        run_grid(cells, row, file or HERE / name, settings, f"python nbs/results/{Path(__file__).name}")


if __name__ == "__main__":
    typer.run(main)
