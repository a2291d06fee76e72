"""How long a step of each method takes, and how much memory it needs, beside a step of NPO: same model, same task, one run.

    python tests/bench.py                          the biographies (two minutes)
    python tests/bench.py --setup gemma-3-270m     a real model (its preparation, then ten minutes)

Ratios, since times differ from machine to machine and from hour to hour. Methods take turns, so that a busy minute hits all of them.
"""
import time
from pathlib import Path
from typing import Annotated, Optional

import torch, typer

METHODS = "triplet,match,mean_residual,stranger+stranger_residual,two_sided,ga,graddiff,npo,simnpo,idk_dpo,refusal,rmu,crisp"

def step_of(task, name):
    "A function that takes one step of a method, one that puts the model back, and the way in which the loop would multiply matrices, as a context."
    from samu.models import products_in
    from samu.baselines import method_named                # the baselines are registered there
    from samu.unlearning import loop_settings, put_weights, retain_batches_of, start_progress, training_step
    method = method_named(name)
    use = loop_settings(task.setup, method, {})
    if method.prepare:
        with torch.no_grad(), products_in(task.setup.model, task.products): method.prepare(task)
    pool, progress = retain_batches_of(task, method), start_progress(task.setup, use)
    retain = sorted(pool, key=lambda b: b.ids.numel(), reverse=True)[:use["retain_batches"]]      # the largest ones: as many tokens for all
    for p in progress.models_own: p.requires_grad_(False)
    def step(i):
        for p in progress.models_own: p.requires_grad_(True)
        with torch.enable_grad(): training_step(task, method, progress.parameters, progress.models_own, progress.optimizer, retain, use["retain_weight"], i)
        for p in progress.models_own: p.requires_grad_(False); p.grad = None
    return step, lambda: put_weights(progress.trained, progress.original), lambda: products_in(task.setup.model, task.products)

def peak_mb(device, step):
    "Megabytes allocated at the highest point of a step, beyond what was there before it."
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device); torch.cuda.reset_peak_memory_stats(device)
        step(); torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen: step()
    held = peak = 0
    for e in sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += e.nbytes(); peak = max(peak, held)
    return peak / 2**20

def main(
    setup:Annotated[str, typer.Option(help="name of a setup, or folder")] = "biographies",
    target:Annotated[Optional[str], typer.Option(help="who is to be forgotten; Michael Jordan, or the eighth person, if left out")] = None,
    methods:Annotated[str, typer.Option(help="separated by commas; NPO is always among them")] = METHODS,
    rounds:Annotated[int, typer.Option(help="timed steps of each method", min=1)] = 15,
    out:Annotated[Optional[Path], typer.Option(help="CSV for the table")] = None,
):
    "Step times and peak memory as multiples of NPO's."
    import pandas as pd
    from samu.latents import find_latents, grade
    from samu.models import load_setup, threads_for
    from samu.saes import sae_for
    from samu.unlearning import make_task
    loaded = load_setup(setup)
    sae, grades = sae_for(loaded), grade(loaded)
    target = target or ("Michael Jordan" if any(e.name == "Michael Jordan" for e in loaded.entities) else loaded.entities[7].name)
    task = make_task(loaded, sae, find_latents(loaded, sae, grades), target, grades)
    names, rows = list(dict.fromkeys([*methods.split(","), "npo"])), {}
    with threads_for(loaded.model):
        clock = time.process_time if torch.get_num_threads() == 1 and loaded.device.type == "cpu" else time.perf_counter     # one thread: its own time, whatever else the machine does
        steps = {n: step_of(task, n) for n in names}
        times = {n: [] for n in names}
        for i in range(rounds + 1):                        # the first round warms up
            for n, (step, back, products) in steps.items():
                with products():
                    start = clock(); step(i)
                    if loaded.device.type == "cuda": torch.cuda.synchronize(loaded.device)
                    if i: times[n].append(1000 * (clock() - start))
                back()
        for n, (step, back, products) in steps.items():
            with products(): rows[n] = dict(step_ms=sorted(times[n])[len(times[n]) // 2], peak_mb=peak_mb(loaded.device, lambda: step(0)))
            back()
    table = pd.DataFrame(rows).T.rename_axis("method")
    table["time_ratio"], table["memory_ratio"] = table.step_ms / table.step_ms["npo"], table.peak_mb / table.peak_mb["npo"]
    print(f"{loaded.name} on {loaded.device}, {target}; ratios are multiples of npo's; memory is what a step allocates beyond the weights, the optimiser's state and the kept residuals")
    print(table.round(3).to_string())
    if out: table.round(4).to_csv(out)

if __name__ == "__main__": typer.run(main)
