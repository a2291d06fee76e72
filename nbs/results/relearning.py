"""How fast does a forgotten person come back? Fine-tunes the original and the unlearned Gemma 3 270M on half of somebody's facts, with two step sizes, and keeps the recall of both halves in relearning.csv.

    python nbs/results/relearning.py                   the two people that chapter 08 shows (ten minutes on two cores)
    python nbs/results/relearning.py "Tiger Woods"     other people

Runs that the table holds already are not made again.
"""
from pathlib import Path
from typing import Annotated

import pandas as pd, typer

PEOPLE = ["Manny Pacquiao", "Ronald Reagan"]     # two of the twelve: one who seemed to be gone, one whom other questions bring back in part
FILE = Path(__file__).with_suffix(".csv")

def main(people:Annotated[list[str], typer.Argument(help="who is to be forgotten and learned again")] = PEOPLE):
    "Recall of shown and unshown facts over the steps of fine-tuning."
    from samu.latents import find_latents, grade, split_for
    from samu.models import load_setup
    from samu.saes import sae_for
    from samu.stress import relearn_curves
    from samu.unlearning import make_task, unlearn
    setup = load_setup("gemma-3-270m")
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    table = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["target"])
    for person in people:
        if person in set(table.target): continue
        target, done = split_for(setup, person, grades).target, None
        for model in ("original", "unlearned"):
            if model == "unlearned": done = unlearn(make_task(setup, sae, latents, person, grades), setup.objective)
            for lr in (2e-5, 5e-6):
                curves = relearn_curves(setup, target, shown=len(target.facts) // 2, draws=2, steps=12, every=2, lr=lr)
                table = pd.concat([table, curves.groupby("step")[["shown", "unshown"]].mean().reset_index().assign(target=person, model=model, lr=lr)], ignore_index=True)
        done.restore(setup)
        table.round(2).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
