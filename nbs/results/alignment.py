"""Is aligned the same as forgotten? Gemma 3 270M: objectives and sizes of the set of latents, looked at every few steps. Writes alignment.csv.

    python nbs/results/alignment.py                    the figure of chapter 08 (a quarter of an hour on two cores)
    python nbs/results/alignment.py "Tiger Woods"      other people

Runs that the table holds already are not made again. All runs have the same budget: 30 steps, the same retained texts, the whole change of the weights.
"""
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd, torch, typer
from tqdm.auto import tqdm

PEOPLE = ["Michael Jordan"]
FILE = Path(__file__).with_suffix(".csv")
RUNS = [("triplet", 8, False), ("triplet", 32, False), ("triplet", 128, False), ("triplet", 512, False), ("triplet", 32, True), ("triplet", 128, True), ("triplet", 512, True), ("match", 2048, False),
        ("mean_residual", 0, False), ("stranger", 2048, False), ("stranger_residual", 0, False), ("stranger+stranger_residual", 2048, False)]   # objective, latents, drawn at random

def chosen(latents, kind, n, random):
    "Half of the latents with the highest scores of this kind of entity, half with the lowest; or as many others."
    scores = latents.by_kind[kind]
    best = torch.cat([scores.topk(n // 2).indices, (-scores).topk(n // 2).indices])
    if not random: return best
    others = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0)).to(scores.device)
    return others[~torch.isin(others, best)][:n]

def main(people:Annotated[list[str], typer.Argument(help="who is to be forgotten")] = PEOPLE):
    "Alignment and recall over the steps, for objectives and sizes of the set of latents."
    from samu.evaluation import alignment, corrected, make_reference, name_pre_activations, percentile
    from samu.latents import find_latents, grade
    from samu.models import answer, load_setup, recall
    from samu.saes import sae_for
    from samu.unlearning import aim_for, make_task, unlearn
    setup = load_setup("gemma-3-270m")
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    table = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["target", "objective", "latents", "random"])
    there = set(table[["target", "objective", "latents", "random"]].itertuples(index=False, name=None))
    for person in people:
        todo = [r for r in RUNS if (person, *r) not in there]
        if not todo: continue
        ref, every = make_reference(setup, sae, latents, person, grades), torch.arange(sae.cfg.d_sae, device=setup.device)
        task = make_task(setup, sae, latents, person, grades, retain_texts=1200, unlike_known=False)
        for objective, n, random in tqdm(todo, desc=person):
            group, rows = chosen(latents, ref.split.target.kind, n, random) if 0 < n < sae.cfg.d_sae else every, []
            def watch(step, _):
                z = name_pre_activations(setup, sae, [ref.split.target])
                moved = {name: alignment(z[0, g], ref.test.z_known[g], ref.test.z_unknown[g], 1 / latents.sd_unknown[0, g]).item() for name, g in (("aligned_chosen", group), ("aligned_all", every))}
                right = recall(answer(setup.model, setup.tokenizer, ref.target_q, setup.reply_tokens), ref.target_q)
                rows.append(dict(target=person, objective=objective, latents=n, random=random, step=step, **moved, percentile=percentile(ref.test.distance(z)[0], ref.test.others).item(),
                                 recall=right, corrected=corrected(right, ref.original["target_prior"])))
            aimed = replace(task, aim=aim_for(setup, sae, latents, group, grades=grades))
            unlearn(aimed, objective, retain_batches=3, check_every=5, share=1.0, watch=watch).restore(setup)
            table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
            table.round(4).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
