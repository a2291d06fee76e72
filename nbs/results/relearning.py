"""How fast does a forgotten person come back? Fine-tunes the original and the unlearned Gemma 3 270M on half of somebody's facts, and keeps the recall of both halves in relearning.csv.

    python nbs/results/relearning.py                   the twelve people of chapter 08, and all methods (minutes on a large GPU with many runs at a time, a day on two cores)
    python nbs/results/relearning.py "Tiger Woods"     other people
    python nbs/results/relearning.py "Manny Pacquiao" "Ronald Reagan" --methods default --lr 2e-5

Runs that the table holds already are not made again. Everything is in float32; a GPU may multiply in TF32.
"""
from pathlib import Path
from typing import Annotated

import pandas as pd, typer
from real_people import TWELVE, gemma_setup

FILE = Path(__file__).with_suffix(".csv")
STEPS, EVERY = 30, 5

def main(
    people:Annotated[list[str], typer.Argument(help="who is to be forgotten and learned again")] = [name for kind in TWELVE.values() for name in kind],
    methods:Annotated[str, typer.Option(help="beside the original; default: the setup's own objective")] = "default,two_sided,mean_residual,triplet_random,rmu,crisp,ga,npo,simnpo,refusal",
    lr:Annotated[float, typer.Option(help="step size of the fine-tuning")] = 5e-6,
):
    "Recall of shown and unshown facts over the steps of fine-tuning."
    from samu.baselines import method_named
    from samu.latents import find_latents, grade, split_for
    from samu.saes import sae_for
    from samu.stress import relearn_curves
    from samu.unlearning import make_task, unlearn_once
    setup = gemma_setup()
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    models = ["original"] + [setup.objective if m == "default" else m for m in methods.split(",")]
    for m in models[1:]: method_named(m)                                 # complains now
    for person in people:
        target, task = split_for(setup, person, grades).target, None
        for model in models:
            table = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["target", "model", "lr"])
            if ((table.target == person) & (table.model == model) & (table.lr == lr)).any(): continue
            done = None
            if model != "original":
                task = task or make_task(setup, sae, latents, person, grades)
                done = unlearn_once(task, model)
            curves = relearn_curves(setup, target, shown=len(target.facts) // 2, draws=2, steps=STEPS, every=EVERY, lr=lr)
            rows = curves.groupby("step")[["shown", "unshown"]].mean().reset_index().assign(target=person, model=model, lr=lr)
            if done: done.restore(setup)
            pd.concat([table, rows], ignore_index=True)[["target", "model", "lr", "step", "shown", "unshown"]].round(dict(shown=3, unshown=3)).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
