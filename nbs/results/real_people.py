"""Makes Gemma 3 270M forget some people, one at a time, and keeps a row for each run in real_people.csv.

    python nbs/results/real_people.py                      five methods with two seeds: ten minutes on a large GPU with many runs at a time, a day on two cores; can be stopped and taken up again
    python nbs/results/real_people.py --seeds 0 --methods triplet_random,rmu,crisp,ga,simnpo      the other methods of chapter 08
    python nbs/results/real_people.py "Tiger Woods" --methods default     somebody else
    python nbs/results/real_people.py --methods default --way as_is   the stranger as he is, and 0.8 of the change; in real_as_is.csv
    python nbs/results/real_people.py --methods default --way rule    the same, but the share of the change is chosen person by person; in real_rule.csv

Runs that the table holds already are not made again. Runs with seed 0 are attacked, too. Everything is in float32; a GPU may multiply in TF32.
"""
from enum import Enum
from pathlib import Path
from typing import Annotated

import pandas as pd, typer
from tqdm.auto import tqdm

FILE = Path(__file__).with_name("real_people.csv")
WAYS = dict(default=(FILE, {}, {}), as_is=(FILE.with_name("real_as_is.csv"), dict(unlike_known=False), dict(share=.8)),
            rule=(FILE.with_name("real_rule.csv"), dict(unlike_known=False), dict(share=(.6, .8, 1.))))      # name -> (table, options of the task, options of the loop)

# Of each kind, the known people in alphabetical order, at one, two and three quarters of the list; the next one if somebody was used before. Applied once, before anything was measured, and written down:
# whom a model knows depends in a few cases on the last digits of its sums, which differ from processor to processor, and a list that shifts by one picks other people.
TWELVE = dict(athlete=["George Foreman", "Manny Pacquiao", "Sachin Tendulkar"], musician=["David Bowie", "George Frideric Handel", "Madonna"], leader=["Fidel Castro", "Jimmy Carter", "Ronald Reagan"],
              scientist=["Carl Linnaeus", "Erwin Schrödinger", "Rachel Carson"])

def gemma_setup():
    "Gemma in float32, on a GPU, too; there matrices are multiplied in TF32."
    import torch
    from samu.models import load_setup
    torch.backends.cuda.matmul.allow_tf32 = True
    return load_setup("gemma-3-270m", dtype=torch.float32)

def attacked(ref, strangers):
    "What rounding to eight bits and other words bring back, corrected for guessing."
    from samu.evaluation import corrected
    from samu.models import products_in
    from samu.stress import attack_recall, quantised_recall
    setup, target, prior = ref.setup, ref.split.target, ref.original["target_prior"]
    helpers = [e for e in ref.split.held_out if e.kind == target.kind][:20]
    with products_in(setup.model, "auto"): attacks = attack_recall(setup, target, helpers, strangers)
    return dict(int8_corrected=corrected(quantised_recall(setup, ref.target_q, (8,))["int8"], prior), attack_corrected=max(corrected(a.recall, a.prior) for a in attacks.itertuples()),
               **{f"attack_{a.attack}": corrected(a.recall, a.prior) for a in attacks.itertuples()})

def main(
    people:Annotated[list[str], typer.Argument(help="who is to be forgotten; the twelve of the chapter, if nobody is named")] = None,
    seeds:Annotated[str, typer.Option(help="of the loop and of the choice of retain texts")] = "0,1",
    methods:Annotated[str, typer.Option(help="default: the setup's own objective")] = "default,two_sided,mean_residual,npo,refusal",
    each:Annotated[int, typer.Option(help="people of each kind", min=1, max=3)] = 3,
    way:Annotated[Enum("Way", {w: w for w in WAYS}), typer.Option(help="as the default is; or with the stranger as he is, and a fixed or a chosen share of the change: each into a table of its own")] = "default",
):
    "Forget people in Gemma 3 270M and keep one row for each run."
    from samu.baselines import method_named
    from samu.evaluation import evaluate, make_reference
    from samu.latents import find_latents, grade
    from samu.saes import sae_for
    from samu.unlearning import make_task, unlearn
    setup = gemma_setup()
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    people, seeds = people or [p for kind in TWELVE.values() for p in kind[:each]], [int(s) for s in seeds.split(",")]
    names = [setup.objective if m == "default" else m for m in methods.split(",")]
    for n in names: method_named(n)                        # complains now
    file, for_task, for_loop = WAYS[getattr(way, "value", way)]
    wanted = [(n, s) for s in seeds for n in names]
    for person in tqdm(people):
        table = pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=["target", "method", "seed"])
        there = set(table[["target", "method", "seed"]].itertuples(index=False, name=None))
        todo = [g for g in wanted if (person, *g) not in there]
        if not todo: continue
        ref = make_reference(setup, sae, latents, person, grades)
        strangers = [e for e in ref.split.unknown_score if e.kind == ref.split.target.kind][:2]
        about = dict(target=person, kind=ref.split.target.kind, questions=len(ref.target_q), neighbours_questions=len(ref.retain_q), device=setup.device.type)
        rows = [] if (person, "original", 0) in there else [about | dict(seed=0) | ref.original]
        for seed in dict.fromkeys(s for _, s in todo):
            task = make_task(setup, sae, latents, person, grades, seed=seed, **for_task)
            for method in (m for m, s in todo if s == seed):
                done = unlearn(task, method, seed=seed, **for_loop)
                rows.append(about | dict(seed=seed, share=done.settings["share"]) | evaluate(ref, method, done) | (attacked(ref, strangers) if seed == 0 else {}))
                done.restore(setup)
                pd.concat([table, pd.DataFrame(rows)], ignore_index=True).round(4).to_csv(file, index=False)

if __name__ == "__main__": typer.run(main)
