"""Attacks on several people and methods: writes stress.csv, a row at a time, and goes on where it stopped.

    python nbs/results/stress.py [METHOD ...]
"""
import sys
from pathlib import Path

import pandas as pd
from samu.evaluation import reference_group, retrained
from samu.latents import find_latents, grade
from samu.models import load_setup
from samu.saes import sae_for
from samu.stress import make_stress, stress
from samu.unlearning import make_task, unlearn

FILE, TARGETS = Path(__file__).with_suffix(".csv"), (17, 27, 37)

def main(methods):
    setup, changed = load_setup("biographies"), load_setup("biographies")
    sae, grades = sae_for(setup), grade(setup)
    latents = find_latents(setup, sae, grades)
    rows = pd.read_csv(FILE).to_dict("records") if FILE.is_file() else []
    for target in [setup.entities[i].name for i in TARGETS]:
        todo = [m for m in methods if not any((r["target"], r["method"]) == (target, m) for r in rows)]
        if not todo: continue
        test = make_stress(setup, sae, latents, target, grades, retrained(setup, reference_group(setup, target)))
        for method in todo:
            done = unlearn(make_task(changed, sae, latents, target, grades), method)
            fields, _ = stress(test, changed)
            done.restore(changed)
            rows.append(dict(target=target, method=method, seed=0, **fields))
            draft = FILE.with_suffix(".draft"); pd.DataFrame(rows).round(4).to_csv(draft, index=False); draft.replace(FILE)
            print(rows[-1], flush=True)

if __name__ == "__main__": main(sys.argv[1:] or ("triplet", "match"))
