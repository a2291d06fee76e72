"""Ten people forgotten one after another in Gemma 3 270M: the state after each of them goes into real_several.csv.

    python nbs/results/real_several.py                 two hours on two cores, five minutes on a large GPU with the three ways at a time
    python nbs/results/real_several.py --way "from the last"     one of the three ways

The people are the first ten of the twelve of real_people.py when the four kinds take turns. Each is forgotten in the model that the one before has left behind, and nobody who is gone is among the names that are kept.
Three ways: the residuals to be kept (and the stranger's) are read anew from the model that the last person left; or all of them from the original, before anything is trained; or so, and whoever is gone is trained along ("rehearsing").
After every fifth person, everybody is asked about again. Ways that the table holds already are not run again.
"""
from pathlib import Path
from typing import Annotated

import pandas as pd, typer
from real_people import TWELVE, gemma_setup
from tqdm.auto import tqdm

FILE = Path(__file__).with_suffix(".csv")

WAYS = {"from the last": "in turn, from the last", "from the original": "in turn", "from the original, rehearsing": "in turn, rehearsing"}      # here -> in chapter 07
PEOPLE = [people[i] for i in range(3) for people in TWELVE.values()]       # one of each kind, then the second of each kind, ...

def asked_about(setup, person, grades):
    "The questions about somebody, and the same about namesakes, which tell how often a guess is right."
    from samu.entities import questions
    from samu.latents import split_for
    from samu.unlearning import guessed_about
    split = split_for(setup, person, grades)
    others = guessed_about(setup, split.target, split.held_out, split.unknown_score)
    return questions([split.target], setup.prompts), questions(others, setup.prompts, facts=split.target.facts)

def main(way:Annotated[list[str], typer.Option(help="one of the three ways; all if none is given")] = list(WAYS), most:Annotated[int, typer.Option(help="people", min=1, max=12)] = 10):
    "Forget people in turn and keep a row for each look."
    from samu.entities import questions
    from samu.evaluation import corrected, enough_questions
    from samu.latents import few_prompts, find_latents, grade, split_for
    from samu.models import answer, perplexity, products_in, recall
    from samu.saes import sae_for
    from samu.stress import several_runs, weights_kept
    from samu.unlearning import unlearn
    if wrong := [w for w in way if w not in WAYS]: raise typer.BadParameter(f"there is no way {wrong[0]!r}; choose from {', '.join(map(repr, WAYS))}")
    setup = gemma_setup()
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
    for w in way:
        table = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["way"])
        if w in set(table.way): continue
        rows, seconds, key = [dict(way=w) | look([])], 0.0, setup.key
        runs = several_runs(setup, sae, latents, people, WAYS[w], grades, 0, turn={}, texts=setup.training["retain_texts"], pooled=False)      # each person's run is that of a single person
        with weights_kept(setup):
            for i, (task, options) in enumerate(tqdm(runs, desc=w, total=len(people))):
                done = unlearn(task, setup.objective, seed=i, **options)
                seconds += done.seconds
                if i % 5 == 4 or i == len(people) - 1: rows.append(dict(way=w) | look(people[:i + 1]) | dict(seconds=seconds))
        setup.key = key
        pd.concat([table, pd.DataFrame(rows)], ignore_index=True).round(4).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
