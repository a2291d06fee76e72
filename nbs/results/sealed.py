"""The sealed test of chapter 10, as `protocol.md` lays it down: real people at whom no one had looked.

    python nbs/results/sealed.py --draw               draws the people, once, before the first run
    python nbs/results/sealed.py                      tier 1, then 2 and 3; goes on where it stopped
    python nbs/results/sealed.py --tier 1 --part 2/3  the second third of the people
    python nbs/results/sealed.py --further            relearning, the inside and steering (sealed_further.csv)
"""

import random
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

HERE = Path(__file__).parent
PEOPLE, ROWS, FURTHER = HERE / "sealed_people.csv", HERE / "sealed.csv", HERE / "sealed_further.csv"
KINDS = ("athlete", "musician", "leader", "scientist", "author")
EACH, FEWEST_FACTS, LEAST_EXCESS = 6, 3, 0.3  # of a kind; known facts; recall above the prior
USED = (  # every person of the table whose name stood anywhere in this project before the draw
    "Abraham Lincoln, Alan Turing, Beyoncé, Bill Clinton, Carl Linnaeus, Cristiano Ronaldo, David Bowie, "
    "Ella Fitzgerald, Elvis Presley, Erwin Schrödinger, Fidel Castro, Floyd Mayweather, Freddie Mercury, "
    "George Foreman, George Frideric Handel, Isaac Newton, Jimmy Carter, Joe Montana, Kobe Bryant, Lionel "
    "Messi, Madonna, Manny Pacquiao, Marie Curie, Michael Jordan, Michael Schumacher, Mike Tyson, Pelé, "
    "Rachel Carson, Richard Nixon, Roger Federer, Ronald Reagan, Sachin Tendulkar, Serena Williams, Tiger "
    "Woods, Usain Bolt, Venus Williams, Winston Churchill"
).split(", ")
ASKED = "attack_excess attack_recall attack_left pooled_excess quantised_excess quantised_recall".split()
OURS = "stand_in+stand_in_residual"
TIERS: dict[int, tuple[dict[str, int], int | None]] = {  # tier -> (method -> seeds, people; all if None)
    1: ({OURS: 2, "stand_in+stand_in": 2, "stand_in_residual+stand_in_residual": 2, "npo": 1, "refusal": 1},
        None),
    2: (dict.fromkeys("mean_residual triplet match triplet_random simnpo two_sided".split(), 1), None),
    3: (dict.fromkeys("rmu crisp ga random_dictionary pca_dictionary random_stand_in".split(), 1), 12),
}


def draw(exp: Any) -> pd.DataFrame:
    "Of each kind, in a seeded order, the first who are known by enough facts and well above the prior."
    from samu.evaluation import measurement, prior, target_recall

    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        names = sorted(e.name for e in exp.known if e.kind == kind and e.name not in USED)
        random.Random(f"sealed-{kind}").shuffle(names)
        mine: list[dict[str, Any]] = []
        for name in names:
            facts = sorted(next(e for e in exp.known if e.name == name).facts)
            if len(facts) < FEWEST_FACTS:
                continue
            m = measurement(exp, name)
            row = dict(name=name, kind=kind, facts="|".join(facts), recall=target_recall(m), prior=prior(m))
            print(row, flush=True)
            if row["recall"] - row["prior"] >= LEAST_EXCESS:
                mine.append(row)
            if len(mine) == EACH:
                break
        rows += mine
    return pd.DataFrame(rows)


def interleaved(people: pd.DataFrame) -> list[str]:
    "One of each kind, then the next of each: the first twelve hold every kind."
    place = people.groupby("kind").cumcount()
    return people.assign(place=place).sort_values(["place", "kind"]).name.tolist()


def main(
    tier: Annotated[int, typer.Option(help="only this one; all, one after the other, if 0")] = 0,
    part: Annotated[str, typer.Option(help="of the people, such as 2/3 for the second third")] = "1/1",
    workers: Annotated[int, typer.Option(help="processes that share the work")] = 1,
    further: Annotated[bool, typer.Option(help="what has no threshold in the protocol")] = False,
    draw_people: Annotated[bool, typer.Option("--draw", help="draw the people and stop")] = False,
) -> None:
    "Run what is not in the table yet: every method once, then the second seeds."
    import samu.attacks  # noqa: F401 (registers its metrics)
    from samu.evaluation import compare, quick_metrics
    from samu.workshop.registry import METRICS
    from samu.workshop.setups import load

    exp = load("gemma-3-270m", dtype="float32")  # the same on every machine
    if draw_people:
        if PEOPLE.exists():
            raise typer.BadParameter(f"{PEOPLE.name} is there: people are drawn once")
        draw(exp).round(4).to_csv(PEOPLE, index=False)
        return
    outcomes = [*quick_metrics(), *ASKED]
    metrics, file = ([m for m in METRICS if m not in outcomes], FURTHER) if further else (outcomes, ROWS)
    command = f"python nbs/results/sealed.py{' --further' if further else ''}"
    names = interleaved(pd.read_csv(PEOPLE))
    mine, parts = map(int, part.split("/"))
    for number, (methods, most) in TIERS.items():
        for seed in range(max(methods.values())) if tier in (0, number) else ():
            for name in names[:most][mine - 1 :: parts]:
                once = [m for m, seeds in methods.items() if seed < seeds]
                compare(exp, [name], once, [seed], file, workers, metrics, command=command)


if __name__ == "__main__":
    typer.run(main)
