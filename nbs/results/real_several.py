"""Ten people forgotten one after another in Gemma 3 270M: the state after each of them goes into real_several.csv.

    python nbs/results/real_several.py                 two hours on two cores
    python nbs/results/real_several.py --ways last     one of the three ways

The people are the first ten of the twelve of real_people.py when the four kinds take turns. Each is forgotten in the model that the one before has left behind, and nobody who is gone is among the names that are kept.
Three ways: the residuals to be kept (and the stranger's) are read anew from the model that the last person left; or all of them from the original, before anything is trained; or so, and whoever is gone is trained along ("rehearsing").
After every fifth person, everybody is asked about again. Ways that the table holds already are not run again.
"""
from pathlib import Path
from typing import Annotated

import pandas as pd, typer
from real_people import TWELVE
from tqdm.auto import tqdm

FILE = Path(__file__).with_suffix(".csv")

WAYS = dict(last="from the last", original="from the original", rehearsing="from the original, rehearsing")
PEOPLE = [people[i] for i in range(3) for people in TWELVE.values()]       # one of each kind, then the second of each kind, ...

def asked_about(setup, person, grades):
    "The questions about somebody, and the same about namesakes, which tell how often a guess is right."
    from samu.entities import questions
    from samu.latents import split_for
    from samu.unlearning import namesakes
    split = split_for(setup, person, grades)
    others = namesakes(setup, split.target, split.held_out, 4) or [e for e in split.unknown_score if e.kind == split.target.kind][:4]     # names of one word have no namesakes
    return questions([split.target], setup.prompts), questions(others, setup.prompts, facts=split.target.facts)

def main(ways:Annotated[str, typer.Option(help="some of last, original, rehearsing")] = "last,original,rehearsing", most:Annotated[int, typer.Option(help="people", min=1, max=12)] = 10):
    "Forget people in turn and keep a row for each look."
    from dataclasses import replace
    from samu.entities import questions
    from samu.evaluation import corrected, enough_questions
    from samu.latents import few_prompts, find_latents, grade, split_for
    from samu.models import answer, load_setup, perplexity, products_in, recall
    from samu.saes import sae_for
    from samu.stress import make_tasks, merged_batches, weights_kept
    from samu.unlearning import unlearn
    setup = load_setup("gemma-3-270m")
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    people = PEOPLE[:most]
    asked, split = {p: asked_about(setup, p, grades) for p in people}, split_for(setup, people[0], grades)
    kept = enough_questions([e for e in split.held_out if e.name not in people][:60], setup.prompts, 1, 200)
    others = questions([e for e in split.others if e.name not in people][:60], few_prompts(setup.prompts, 1))
    def right(asked):
        with products_in(setup.model, "auto"): return recall(answer(setup.model, setup.tokenizer, asked, setup.reply_tokens), asked)
    def look(gone):
        each = {p: corrected(right(about), right(guess)) for p, (about, guess) in asked.items()}
        mean = lambda names: sum(each[p] for p in names) / len(names) if names else None
        return dict(forgotten=len(gone), gone=mean(gone), worst=max((each[p] for p in gone), default=None), to_come=mean([p for p in people if p not in gone]),
                    kept=right(kept), others=right(others), perplexity=perplexity(setup.model, setup.tokenizer, setup.ordinary["score"]), **each)
    texts = setup.training["retain_texts"]
    for way in ways.split(","):
        table = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["way"])
        if WAYS[way] in set(table.way): continue
        rows, seconds, key = [dict(way=WAYS[way]) | look([])], 0.0, setup.key
        tasks = [] if way == "last" else [make_tasks(setup, sae, latents, [p], grades, people[:i], texts, seed=i) for i, p in enumerate(people)]
        with weights_kept(setup):
            for i, person in enumerate(tqdm(people, desc=WAYS[way])):
                task = tasks[i] if tasks else make_tasks(setup, sae, latents, [person], grades, people[:i], texts, seed=i)
                if way == "rehearsing" and i:
                    old, were = merged_batches([b for t in tasks[:i] for b in t.forget], [b for t in tasks[:i] for b in t.before])
                    task = replace(task, forget=task.forget + old, before=task.before + were)
                done = unlearn(task, setup.objective, seed=i)
                seconds += done.seconds
                if i % 5 == 4 or i == len(people) - 1: rows.append(dict(way=WAYS[way]) | look(people[:i + 1]) | dict(seconds=seconds))
        setup.key = key
        pd.concat([table, pd.DataFrame(rows)], ignore_index=True).round(4).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
