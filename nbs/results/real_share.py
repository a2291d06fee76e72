"""How much of a run's change has to stay? Gemma 3 270M forgets some people with the default objective, a part of the change is taken back, and the rest is measured: real_share.csv.

    python nbs/results/real_share.py                   the people of chapter 08 (an hour on two cores)
    python nbs/results/real_share.py "Tiger Woods"     somebody else

The stranger is taken as he is. None of these people is among the twelve of real_people.py: the rule by which `share` is chosen was made while looking at them. Rows that the table holds already are not made again.
"""
from pathlib import Path
from typing import Annotated

import pandas as pd, typer

PEOPLE, SHARES = ["Bill Clinton", "Richard Nixon", "Marie Curie", "Beyoncé"], [.4, .6, .8, 1.]
FILE = Path(__file__).with_suffix(".csv")

def main(people:Annotated[list[str], typer.Argument(help="who is to be forgotten")] = PEOPLE):
    "What is forgotten and kept with several shares."
    from samu.evaluation import evaluate, make_reference
    from samu.latents import find_latents, grade
    from samu.models import load_setup
    from samu.saes import sae_for
    from samu.unlearning import make_task, put_weights, trained_parameters, unlearn
    setup = load_setup("gemma-3-270m")
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    for person in people:
        table = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["target", "share"])
        todo = [s for s in SHARES if s not in set(table[table.target == person].share)]
        if not todo: continue
        ref, task = make_reference(setup, sae, latents, person, grades), make_task(setup, sae, latents, person, grades, unlike_known=False)
        done, rows = unlearn(task, setup.objective, share=1.), []
        for s in todo:
            put_weights(trained_parameters(setup, done.settings["blocks"], done.settings["weights"]), {k: done.original[k].lerp(w, s) for k, w in done.changed.items()})
            row = evaluate(ref, f"share {s}", done)
            rows.append(dict(target=person, share=s) | {k: row[k] for k in ("target_recall_corrected", "retain_ratio", "others_ratio", "perplexity_ratio", "alignment_percentile", "probe_known")})
        done.restore(setup)
        pd.concat([table, pd.DataFrame(rows)], ignore_index=True).sort_values(["target", "share"]).round(4).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
