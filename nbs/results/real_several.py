"""Ten people forgotten one after another in Gemma 3 270M: the state after each of them goes into real_several.csv.

    python nbs/results/real_several.py                 half an hour on two cores

The people are the first ten of the twelve of real_people.py when the four kinds take turns. Each is forgotten in the model that the one before has left behind; residuals to be kept are read anew from that model, and
nobody who is gone is among the names that are kept. After every second person, everybody is asked about again.
"""
from pathlib import Path
from typing import Annotated

import pandas as pd, typer
from real_people import TWELVE
from tqdm.auto import tqdm

FILE = Path(__file__).with_suffix(".csv")

PEOPLE = [people[i] for i in range(3) for people in TWELVE.values()]       # one of each kind, then the second of each kind, ...

def main(most:Annotated[int, typer.Option(help="people", min=1, max=12)] = 10):
    "Forget people in turn and keep a row for each look."
    from samu.entities import questions
    from samu.evaluation import corrected, enough_questions, make_reference
    from samu.latents import few_prompts, find_latents, grade, known_entities
    from samu.models import answer, load_setup, perplexity, products_in, recall
    from samu.saes import sae_for
    from samu.stress import make_tasks
    from samu.unlearning import unlearn
    setup = load_setup("gemma-3-270m")
    grades, sae = grade(setup), sae_for(setup)
    latents = find_latents(setup, sae, grades)
    people = PEOPLE[:most]
    refs = {p: make_reference(setup, sae, latents, p, grades, entities=8, prompts_each=1) for p in people}
    kept = enough_questions([e for e in refs[people[0]].split.held_out if e.name not in people][:60], setup.prompts, 1, 200)
    others = questions([e for e in refs[people[0]].split.others if e.name not in people][:60], few_prompts(setup.prompts, 1))
    def say(asked):
        with products_in(setup.model, "auto"): return answer(setup.model, setup.tokenizer, asked, setup.reply_tokens)
    def look(gone):
        each = {p: corrected(recall(say(refs[p].target_q), refs[p].target_q), recall(say(refs[p].prior_q), refs[p].prior_q)) for p in people}
        return dict(forgotten=len(gone), corrected_gone=sum(each[p] for p in gone) / max(1, len(gone)), worst_gone=max([each[p] for p in gone], default=0.0), corrected_to_come=sum(each[p] for p in people if p not in gone) / max(1, len(people) - len(gone)),
                    kept=recall(say(kept), kept), others=recall(say(others), others), perplexity=perplexity(setup.model, setup.tokenizer, setup.ordinary["score"]), **each)
    rows, seconds = [look([])], 0.0
    for i, person in enumerate(tqdm(people)):
        done = unlearn(make_tasks(setup, sae, latents, [person], grades, people[:i], setup.training["retain_texts"], seed=i), setup.objective, seed=i)
        seconds += done.seconds
        if i % 2: rows.append(look(people[:i + 1]) | dict(seconds=seconds))
        pd.DataFrame(rows).round(4).to_csv(FILE, index=False)

if __name__ == "__main__": typer.run(main)
