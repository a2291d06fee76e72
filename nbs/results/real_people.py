"""Makes Gemma 3 270M forget some people, again and again, and keeps a row for each run in real_people.csv.

    python nbs/results/real_people.py                      the table that chapter 08 shows (about 40 minutes on two cores)
    python nbs/results/real_people.py "Tiger Woods"        other people
    python nbs/results/real_people.py --seeds 0 --objectives triplet,match

Runs that the table holds already are not made again.
"""
import itertools
from pathlib import Path
from typing import Annotated

import pandas as pd, typer
from tqdm.auto import tqdm

PEOPLE = ["Michael Jordan", "Marie Curie", "Elvis Presley"]   # an athlete, a scientist, a musician; chosen before anything was measured on them
FILE = Path(__file__).with_name("real_people.csv")

def main(
    people:Annotated[list[str], typer.Argument(help="who is to be forgotten")] = PEOPLE,
    seeds:Annotated[str, typer.Option(help="of the loop and of the choice of retain texts")] = "0,1,2",
    objectives:Annotated[str, typer.Option(help="the setup's default with all seeds, the others with the first seed only")] = "default,match,mean_residual",
):
    "Forget people in Gemma 3 270M and keep one row for each run."
    from samu.evaluation import evaluate, make_reference
    from samu.latents import find_latents, grade
    from samu.models import load_setup
    from samu.saes import sae_for
    from samu.unlearning import make_task, unlearn_once
    setup = load_setup("gemma-3-270m")
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    table = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["target", "method", "seed"])
    seeds = [int(s) for s in seeds.split(",")]
    names = [setup.objective if o == "default" else o for o in objectives.split(",")]
    wanted = [("original", seeds[0]), *((names[0], s) for s in seeds), *((n, seeds[0]) for n in names[1:])]
    there = set(table[["target", "method", "seed"]].itertuples(index=False, name=None))
    for person in people:
        todo = [w for w in wanted if (person, *w) not in there]
        if not todo: continue
        ref = make_reference(setup, sae, latents, person, grades)
        for seed, group in itertools.groupby(sorted(todo, key=lambda w: w[1]), key=lambda w: w[1]):
            task = make_task(setup, sae, latents, person, grades, seed=seed)
            for method, _ in tqdm(list(group), desc=f"{person}, seed {seed}"):
                done = None if method == "original" else unlearn_once(task, method, seed=seed)
                row = dict(target=person, kind=ref.split.target.kind, seed=seed, questions=len(ref.target_q), neighbours_questions=len(ref.retain_q)) | (evaluate(ref, method, done) if done else ref.original)
                if done: done.restore(setup)
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                table.round(4).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
