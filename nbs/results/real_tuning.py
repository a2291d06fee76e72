"""Step sizes for the baselines on Gemma 3 270M: three for each method, on somebody who is not among the twelve. Writes real_tuning.csv.

    python nbs/results/real_tuning.py                  all methods (an hour on two cores)
    python nbs/results/real_tuning.py npo simnpo       some of them

Runs that the table holds already are not made again. Every method takes 30 steps, as the default objective does. Methods that stop at the site train the down-projections of blocks 3 to 9,
as the default objective does; methods on answers train the MLPs of all blocks and want smaller steps: hence two grids of the same size. The best values are in GEMMA3_TUNED (chapter 01).
"""
from pathlib import Path
from typing import Annotated

import pandas as pd, typer
from tqdm.auto import tqdm

PERSON, STEPS = "Joe Montana", 30
AT_SITE, ON_ANSWERS = (1e-4, 3e-4, 1e-3), (1e-5, 3e-5, 1e-4)
GRID = {m: AT_SITE for m in ("stranger+stranger_residual", "mean_residual", "triplet_random", "rmu", "crisp")} | {m: ON_ANSWERS for m in ("ga", "npo", "simnpo", "refusal", "two_sided")}
FILE = Path(__file__).with_suffix(".csv")

def score(row, first):
    "What is forgotten, times what is kept: neighbours, what strangers are told, ordinary text. At most 1."
    return (1 - row["target_recall_corrected"]) * min(1, row["retain_ratio"]) * min(1, row["unknown_rate"] / first["unknown_rate"]) * min(1, 1 / row["perplexity_ratio"])

def main(methods:Annotated[list[str], typer.Argument(help="which; all if none is named")] = None):
    "Three step sizes for each method."
    from samu.baselines import method_named
    from samu.evaluation import evaluate, make_reference
    from samu.latents import find_latents, grade
    from samu.models import load_setup
    from samu.saes import sae_for
    from samu.unlearning import make_task, unlearn
    setup = load_setup("gemma-3-270m")
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    setup.scoring["neighbour_questions"] = 60                # a coarse look is enough to choose by
    ref, task = make_reference(setup, sae, latents, PERSON, grades, entities=12, prompts_each=1), make_task(setup, sae, latents, PERSON, grades, unlike_known=False)
    for method in methods or GRID:
        for lr in tqdm(GRID[method], desc=method):
            table = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["method", "lr"])
            if ((table.method == method) & (table.lr == lr)).any(): continue
            done = unlearn(task, method_named(method), lr=lr, steps=STEPS, share=.8)      # the stranger as he is, and this share, as the default was when the table was made
            row = evaluate(ref, method, done)
            done.restore(setup)
            row = dict(target=PERSON, method=method, lr=lr, score=score(row, ref.original)) | {k: row[k] for k in ("target_recall", "target_recall_corrected", "retain_ratio", "others_ratio", "unknown_rate", "perplexity_ratio", "alignment_percentile", "probe_known")}
            table = pd.read_csv(FILE) if FILE.is_file() else table
            pd.concat([table, pd.DataFrame([row])], ignore_index=True).round(5).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
