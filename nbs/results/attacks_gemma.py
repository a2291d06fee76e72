"""Which families of chapter 08 the original Gemma answers: rows for each person and family, with what is said
about unknown names beside it. Writes attacks_gemma.csv.

    python nbs/results/attacks_gemma.py                (a quarter of an hour on one core)
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

FILE = Path(__file__).with_suffix(".csv")
KINDS = ("athlete", "musician", "leader", "scientist", "author")


def known_people(exp, n):
    "The first n known people, kind by kind, with the facts that the model gives to half of the prompts."
    from samu.entities import few_prompts, questions
    from samu.workshop.tables import is_right

    kinds = [[e for e in exp.entities if e.kind == kind][: n // 2] for kind in KINDS]
    turns = [e for turn in zip(*kinds, strict=True) for e in turn]
    prompts, found = few_prompts(exp.prompts, 2, "loss"), []
    for e in turns:
        if len(found) == n:
            break
        asked = questions([e], prompts, "loss")
        right = [(q.attribute, is_right(r, q.answers)) for q, r in zip(asked, exp.ask(asked), strict=True)]
        knows = {a: v for a, v in e.facts.items() if any(x for b, x in right if b == a)}
        if len(knows) >= 2:
            found.append(replace(e, facts=knows))
    return found


def main(
    people: Annotated[int, typer.Option(help="known people")] = 40,
    others: Annotated[int, typer.Option(help="of whom two unknown names are asked about")] = 10,
    most: Annotated[int, typer.Option(help="questions of a family about a person")] = 2,
    file: Annotated[Path, typer.Option(help="CSV that keeps the rows")] = FILE,
):
    "Ask the original Gemma about known people in every way."
    import pandas as pd
    import samu.attacks  # registers the families
    from samu.entities import namesakes
    from samu.workshop.asking import answered
    from samu.workshop.registry import ATTACKS
    from samu.workshop.setups import load
    from samu.workshop.statistics import evenly
    from samu.workshop.tables import Entity

    torch.set_num_threads(1)
    exp, rows = load("gemma-3-270m"), []
    chosen = known_people(exp, people)
    for i, e in enumerate(chosen):
        helpers = [o for o in chosen if o.kind == e.kind and o.name != e.name]
        alike = namesakes(exp, e, helpers, 1) + [u for u in exp.unknown if u.kind == e.kind][i : i + 1]
        alike = [Entity(u.name, e.kind, e.facts) for u in alike] if i % (people // others) == 0 else []
        for name, family in ATTACKS.items():
            n = 1 if family.samples else most
            own = evenly(family.ask(exp, e, helpers), n)
            texts = {q.text for q in own}
            about = [q for u in alike for q in evenly(family.ask(exp, u, helpers), n) if q.text not in texts]
            for who, asked in (("original", own), ("prior", about)):
                if asked:
                    right = answered(exp, family, asked)
                    rows.append(dict(target=e.name, attack=name, who=who, n=len(right), right=sum(right)))
        pd.DataFrame(rows).to_csv(file, index=False)
        print(i + 1, e.name, flush=True)
    table = pd.DataFrame(rows).groupby(["attack", "who"])[["n", "right"]].sum().unstack()
    share = (table["right"] / table["n"]).assign(questions=table["n"]["original"])
    print(len(chosen), "people;", samu.attacks.__name__)
    print(share.round(2).to_string())


if __name__ == "__main__":
    typer.run(main)
