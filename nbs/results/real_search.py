"""Settings of the methods on Gemma, searched as in chapter 07. Each published method has that of the sealed
test and 24 or more, narrowed down over six people on whom settings were chosen before
(real_search.csv). With --test, the choice runs on the first twelve people of the sealed test
(sealed_searched.csv). Goes on where it stopped.

    python nbs/results/real_search.py npo           the search: two hours on one core or two
    python nbs/results/real_search.py npo --test    the choice on the twelve
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from sealed import ASKED, PEOPLE, interleaved

HERE = Path(__file__).parent
ROWS, TESTED = HERE / "real_search.csv", HERE / "sealed_searched.csv"
VALIDATION = ("Joe Montana", "Marie Curie", "Richard Nixon", "Beyoncé", "Tiger Woods", "Abraham Lincoln")
ROUNDS = ((1, 3), (3, 1), (6, 1))  # people, configurations that stay
FIRST = 12  # people of the sealed test
STEPS, SEALED = 30, dict(npo=3e-5, simnpo=3e-5, refusal=1e-5)  # step sizes of the sealed test
STEP_SIZES = dict(npo=(5e-6, 1e-5, 2e-5, 4e-5), simnpo=(5e-6, 1e-5, 2e-5, 4e-5),
                  refusal=(2e-6, 5e-6, 1e-5, 2e-5))
HELD = (("answers", 1.0), ("answers", 4.0), ("kl", 1.0), ("kl", 4.0), ("answers", 16.0), ("answers", 64.0))
EDGE = dict(npo=(("answers", 4.0, 2.5e-6), ("answers", 16.0, 2.5e-6),  # the best had the smallest step size
                 ("answers", 1.0, 2.5e-6), ("answers", 4.0, 1.2e-6)))  # and again


def configurations(name):
    "The setting of the sealed test first; then all of the change is kept."
    def one(retain, weight, lr, keep=1.0):
        return dict(lr=lr, retain_weight=weight, retain=retain, steps=STEPS, keep_fraction=keep)

    grid = [*((*held, lr) for held, lr in product(HELD, STEP_SIZES[name])), *EDGE.get(name, ())]
    return [one("answers", 1.0, SEALED[name], 0.8), *(one(*point) for point in grid)]


def search(exp, name, workers=1):
    "Try all configurations on one person, the best three on three, the best of them on all six."
    from samu.workshop.tuning import best, tuning_rows

    tried = configurations(name)
    for n, stay in ROUNDS:
        rows = tuning_rows(exp, VALIDATION[:n], {name: tried}, ROWS, workers,
                           f"python nbs/results/{Path(__file__).name} {name}")
        tried = best(rows, stay)


def choice(name):
    "The configuration that scores best on all six people, by the table."
    from samu.workshop.tuning import best

    rows = pd.read_csv(ROWS, comment="#").query("method == @name")
    return best(rows[rows.groupby("config").target.transform("nunique") == len(VALIDATION)])[0]


def main(
    method: Annotated[str, typer.Argument(help=f"one of {', '.join(STEP_SIZES)}")],
    workers: Annotated[int, typer.Option(help="processes that share the work")] = 1,
    test: Annotated[bool, typer.Option(help="run the choice on the people of the sealed test")] = False,
) -> None:
    "Search, or test what was found."
    import samu.attacks  # noqa: F401 (registers its metrics)
    from samu.evaluation import compare, quick_metrics
    from samu.workshop.setups import load

    exp = load("gemma-3-270m", dtype="float32")  # as in the sealed test
    if not test:
        search(exp, method, workers)
    found = choice(method)
    print(method, found, flush=True)
    if test:
        exp = replace(exp, settings=replace(exp.settings, tuned={method: found}))
        names = interleaved(pd.read_csv(PEOPLE))[:FIRST]
        for i in range(0, FIRST, workers):  # some people are finished before the next ones begin
            compare(exp, names[i:i + workers], [method], [0], TESTED, workers,
                    [*quick_metrics(), *ASKED, "attack_left_unknown"],
                    command=f"python nbs/results/{Path(__file__).name} {method} --test")


if __name__ == "__main__":
    typer.run(main)
