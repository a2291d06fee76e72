"""Several people forgotten, at once and one after another: writes several.csv, a row at a time, and goes on where it stopped.

    python nbs/results/several.py
"""
from pathlib import Path

import pandas as pd
from samu.latents import find_latents, grade
from samu.models import load_setup
from samu.saes import sae_for
from samu.stress import WAYS, forget_several

FILE = Path(__file__).with_suffix(".csv")

def main():
    setup = load_setup("biographies")
    sae, grades = sae_for(setup), grade(setup)
    latents = find_latents(setup, sae, grades)
    rows = pd.read_csv(FILE).to_dict("records") if FILE.is_file() else []
    for seed in (0, 1):
        for people in (20, 5, 1):
            for way in WAYS:
                if any((r["seed"], r["people"], r["way"]) == (seed, people, way) for r in rows): continue
                targets = [e.name for i, e in enumerate(setup.entities) if i % 5 == 2 + seed][:people]
                row = forget_several(setup, sae, latents, targets, setup.objective, way, grades, seed)
                rows.append(dict(seed=seed, method=setup.objective, **row))
                draft = FILE.with_suffix(".draft"); pd.DataFrame(rows).round(4).to_csv(draft, index=False); draft.replace(FILE)
                print(rows[-1], flush=True)

if __name__ == "__main__": main()
