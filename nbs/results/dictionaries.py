"""Does a better dictionary help more? Dictionaries for Gemma 3 270M at the held-out names of chapter 10
(dictionaries.csv), and two of them in the loss, on the people on whom settings were chosen
(dictionaries_compared.csv). Goes on where it stopped.

    python nbs/results/dictionaries.py             trains and measures them: ten minutes on two cores
    python nbs/results/dictionaries.py --compare   forgets the six people: an hour
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from real_search import VALIDATION
from sealed import OURS

HERE = Path(__file__).parent
FOUND, COMPARED = HERE / "dictionaries.csv", HERE / "dictionaries_compared.csv"
USUAL = dict(layer=9, d_sae=2048, k=32, texts=7_000, samples=300_000)  # the setup's
TRIED = [USUAL, USUAL | dict(k=64), USUAL | dict(k=128)]
BETTER = TRIED[-1]  # the first that misses at most a fifth of the variance at names
RESIDUAL = "stand_in_residual+stand_in_residual"  # no dictionary, at the summed weight of ours
IN_LOSS = [(OURS, BETTER), (RESIDUAL, USUAL), (OURS, USUAL)]
OUTCOMES = ("recall_left attack_left refit_auc retain_ratio namesake_ratio unknown_ratio "
            "perplexity_ratio").split()


def with_dictionary(exp: Any, one: dict[str, int]) -> Any:
    "The experiment with another dictionary."
    sae = {k: v for k, v in one.items() if k != "layer"} | dict(lr=1e-3)
    return replace(exp, layer=one["layer"], settings=replace(exp.settings, sae=sae))


def quality(exp: Any, one: dict[str, int]) -> dict[str, float]:
    "Train a dictionary and measure it at the names of chapter 10, and at every token of ordinary text."
    from samu.entities import few_prompts, questions, split_for
    from samu.residuals import name_residuals
    from samu.saes import load_sae, sae_quality, text_residuals, train_sae

    own = with_dictionary(exp, one)
    people = split_for(own, "Michael Jordan").held_out[:60]
    names, _ = name_residuals(own, questions(people, few_prompts(own.prompts, 1)))
    tokens, _, _ = text_residuals(own, own.ordinary["score"])
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_sae(own, Path(folder), **own.settings.sae)
        seconds = time.perf_counter() - start
        sae = load_sae(folder, own)
    at = dict(names=sae_quality(sae, names.values), text=sae_quality(sae, tokens))
    short = {f"{k}_{place}": q[k] for place, q in at.items() for k in ("unexplained_variance", "l0", "dead")}
    return short | dict(seconds=seconds)


def main(
    compare: Annotated[bool, typer.Option("--compare", help="forget the six people")] = False,
) -> None:
    "Make the rows that are not there yet."
    import samu.attacks  # noqa: F401 (registers its metrics)
    from samu.evaluation import row_of
    from samu.forgetting import make_task
    from samu.workshop.experiments import run_grid
    from samu.workshop.setups import load
    from samu.workshop.store import code_digest, digest

    exp = load("gemma-3-270m", dtype="float32")
    command = f"python nbs/results/{Path(__file__).name}"
    if not compare:
        run_grid(TRIED, lambda cell: quality(exp, cell), FOUND, digest(exp.id, code_digest(quality)), command)
        return
    made = {tuple(one.values()): with_dictionary(exp, one) for _, one in IN_LOSS}
    cells = [dict(target=t, method=m, seed=0, **one) for t in VALIDATION for m, one in IN_LOSS]

    def row(cell: dict[str, Any]) -> dict[str, Any]:
        return row_of(made[tuple(cell[k] for k in USUAL)], cell, OUTCOMES, False)

    settings = digest(exp.id, exp.settings, code_digest(row_of, make_task))
    run_grid(cells, row, COMPARED, settings, f"{command} --compare")


if __name__ == "__main__":
    typer.run(main)
