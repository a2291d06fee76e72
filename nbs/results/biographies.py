"""Every method on eight people with three seeds, under everything that chapters 06 and 07 measure: writes biographies.csv, a row at a time, and goes on where it stopped.

    python nbs/results/biographies.py                              all of it (two hours on one core)
    python nbs/results/biographies.py --methods two_sided,triplet  some methods
    python nbs/results/biographies.py --places 3,13 --file a.csv   some people, into another file: two halves can run side by side
"""
from pathlib import Path
from typing import Annotated

import pandas as pd, torch, typer

FILE = Path(__file__).with_suffix(".csv")
PLACES = "3,13,23,33,57,67,77,87"   # in the list of people; nothing was tuned on them. Two groups of ten, so that two pairs of retrained models serve all
METHODS = "two_sided,triplet,match,mean_residual,triplet_random,ga,ga_tuned,graddiff,npo,simnpo,idk_dpo,refusal,rmu,crisp"
INSIDE = "alignment", "probe", "steps", "seconds", "step_ms", "peak_mb", "depth", "given", "steer"   # what means nothing for a model with other coordinates, or one that was not unlearned

def main(
    methods:Annotated[str, typer.Option(help="separated by commas")] = METHODS,
    places:Annotated[str, typer.Option(help="of the people, in the list of the invented world")] = PLACES,
    seeds:Annotated[str, typer.Option(help="of the loop and of the choice of retain texts")] = "0,1,2",
    file:Annotated[Path, typer.Option(help="CSV that keeps the rows")] = FILE,
):
    "Measure methods on people of the invented world, beside models retrained without them."
    from samu.evaluation import compare_many, evaluate, make_reference, reference_group, retrained
    from samu.baselines import write_rows
    from samu.latents import find_latents, grade
    from samu.models import load_setup
    from samu.saes import sae_for
    from samu.stress import make_stress, stress
    from dataclasses import replace
    torch.set_num_threads(1)
    setup, original = load_setup("biographies"), load_setup("biographies")     # the second is never changed: the attacks need it beside the first
    sae, grades = sae_for(setup), grade(setup)
    latents, command = find_latents(setup, sae, grades), "python nbs/results/biographies.py"
    gold = lambda name: [retrained(setup, reference_group(setup, name), seed) for seed in (0, 1)]
    tests = {}
    def test_of(name):
        if name not in tests: tests.clear(); tests[name] = make_stress(original, sae, latents, name, grades, gold(name)[0])
        return tests[name]
    def also(name): return lambda: stress(test_of(name), setup)[0]
    for name in [setup.entities[int(p)].name for p in places.split(",")]:
        compare_many(setup, sae, latents, [name], methods.split(","), grades, [int(s) for s in seeds.split(",")], file, gold, also, command)
        rows = pd.read_csv(file, comment="#").to_dict("records")
        if any((r["target"], r["method"]) == (name, "retrained") for r in rows): continue
        ref, second = make_reference(setup, sae, latents, name, grades, gold=gold(name)[:1]), gold(name)[1]       # one retrained model, measured against the other
        row = evaluate(replace(ref, setup=second), "retrained") | stress(test_of(name), second)[0]
        row = {k: None if k.startswith(INSIDE) else v for k, v in row.items()} | dict(setup=setup.name, target=name, seed=0, method="retrained")
        write_rows([*rows, row], file, command)

if __name__ == "__main__": typer.run(main)
