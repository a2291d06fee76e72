"""What each method costs on this machine: a step and its memory beside NPO's, the time until somebody is forgotten, and what makes a step dearer. Same model, same task, one run.

    python tests/bench.py                          the biographies (two minutes)
    python tests/bench.py --setup gemma-3-270m     a real model (its preparation, then half an hour)
    python tests/bench.py --parts steps            only the first table

Ratios, since times differ from machine to machine and from hour to hour. Methods take turns, so that a busy minute hits all of them.
"""
import copy, time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import torch, typer

PUBLISHED = {"ga", "graddiff", "npo", "simnpo", "idk_dpo", "refusal", "rmu", "crisp"}
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

def product_rate(device, dtype):
    "Floating-point operations a second in a product of large matrices, with as many threads as a step uses."
    a = torch.randn(2048, 2048, device=device).to(dtype)
    def once():
        start = time.perf_counter(); a @ a
        if device.type == "cuda": torch.cuda.synchronize(device)
        return time.perf_counter() - start
    return 2 * 2048 ** 3 / sorted(once() for _ in range(9))[4]

def operations(step):
    "Floating-point operations of the matrix products in one step, forward and backward."
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter: step()
    return counter.get_total_flops()

def in_turn(steps, rounds, device):
    "Median seconds of each step; they take turns, and the first round warms up."
    clock = time.process_time if torch.get_num_threads() == 1 and device.type == "cpu" else time.perf_counter     # one thread: its own time, whatever else the machine does
    times = {n: [] for n in steps}
    for i in range(rounds + 1):
        for n, (step, back, products) in steps.items():
            with products():
                start = clock(); step(i)
                if device.type == "cuda": torch.cuda.synchronize(device)
                if i: times[n].append(clock() - start)
            back()
    return {n: sorted(t)[len(t) // 2] for n, t in times.items()}

class Forgotten(Exception): "The goal is reached; the loop puts the model back."

def time_to_forget(ref, task, name, recalled=0.1, kept=0.97):
    "Seconds of training, questions not counted, until the target's corrected recall and the neighbours' are where they should be; None if they never are. The model is the original again."
    from samu.baselines import method_named
    from samu.evaluation import corrected
    from samu.models import answer, products_in, recall
    from samu.unlearning import unlearn
    setup, asking = ref.setup, [0.0]
    def reached():
        with products_in(setup.model, setup.scoring.get("products", "full")):
            right, guessed, neighbours = (recall(answer(setup.model, setup.tokenizer, q, setup.reply_tokens), q) for q in (ref.target_q, ref.prior_q, ref.retain_q))
        return corrected(right, guessed) <= recalled and neighbours >= kept * ref.original["retain_recall"]
    def watch(step, _):
        now = time.perf_counter()
        if step and reached(): raise Forgotten(now - start - asking[0])
        asking[0] += time.perf_counter() - now
    start = time.perf_counter()
    try: done = unlearn(task, method_named(name), watch=watch)
    except Forgotten as e: return e.args[0]
    seconds = time.perf_counter() - start - asking[0]
    try: return seconds if reached() else None            # the share that is taken back at the end may have helped
    finally: done.restore(setup)

def wider(aim, times):
    "The same aim with every latent so many times."
    sae, many = copy.deepcopy(aim.sae), lambda x: torch.cat([x] * times, -1)
    for n in ("W_enc", "b_enc", "threshold"):
        if hasattr(sae, n): setattr(sae, n, torch.nn.Parameter(many(getattr(sae, n).data), requires_grad=False))
    sae.W_dec = torch.nn.Parameter(torch.cat([sae.W_dec.data] * times), requires_grad=False)
    sae.cfg.d_sae *= times
    return replace(aim, sae=sae, **{n: many(getattr(aim, n)) for n in ("mu_unknown", "sd_unknown", "mu_known", "on_unknown")})

def variations(setup, sae, latents, grades, task, people):
    "What may make a step dearer: (what, how much) -> (task, method)."
    from samu.stress import make_tasks
    few = lambda share: replace(task, forget=task.forget[:max(1, round(share * len(task.forget)))], before=task.before[:max(1, round(share * len(task.forget)))])
    out = {("batches of prompts about the target", len(few(s).forget)): (few(s), setup.objective) for s in (.25, .5, 1)}
    out |= {("targets in one run", n): (make_tasks(setup, sae, latents, people[:n], grades), setup.objective) for n in (1, 2, 4)}
    for method in dict.fromkeys(["triplet", "match", setup.objective]): out |= {(f"latents of the dictionary, {method}", n * sae.cfg.d_sae): (replace(task, aim=wider(task.aim, n)), method) for n in (1, 4, 16)}
    return out

def main(
    setup:Annotated[str, typer.Option(help="name of a setup, or folder")] = "biographies",
    target:Annotated[Optional[str], typer.Option(help="who is to be forgotten; Michael Jordan, or the eighth person, if left out")] = None,
    methods:Annotated[str, typer.Option(help="separated by commas; NPO is always among them, and so is the setup's default objective")] = METHODS,
    rounds:Annotated[int, typer.Option(help="timed steps of each method", min=1)] = 15,
    parts:Annotated[str, typer.Option(help="which tables: steps, forget, cost")] = "steps,forget,cost",
    out:Annotated[Optional[Path], typer.Option(help="CSV for the table of methods")] = None,
):
    "Step times and peak memory as multiples of NPO's, time to forget, and what a step's cost depends on."
    import pandas as pd
    from samu.evaluation import make_reference
    from samu.latents import find_latents, grade, known_entities
    from samu.models import load_setup, threads_for
    from samu.saes import sae_for
    from samu.unlearning import make_task
    wanted = parts.split(",")
    if bad := set(wanted) - {"steps", "forget", "cost"}: raise typer.BadParameter(f"no part {min(bad)!r}; choose from steps, forget, cost", param_hint="--parts")
    loaded = load_setup(setup)
    sae, grades = sae_for(loaded), grade(loaded)
    latents = find_latents(loaded, sae, grades)
    target = target or ("Michael Jordan" if any(e.name == "Michael Jordan" for e in loaded.entities) else loaded.entities[7].name)
    names, columns = list(dict.fromkeys([loaded.objective, *methods.split(","), "npo"])), {}
    with threads_for(loaded.model):
        if "forget" in wanted: ref = make_reference(loaded, sae, latents, target, grades)
        task = make_task(loaded, sae, latents, target, grades)
        print(f"{loaded.name} on {loaded.device}, {torch.get_num_threads()} threads, {target}")
        if "steps" in wanted:
            rate = product_rate(loaded.device, torch.bfloat16 if task.products == "bfloat16" else loaded.dtype)
            steps = {n: step_of(task, n) for n in names}
            seconds = in_turn(steps, rounds, loaded.device)
            for n, (step, back, products) in steps.items():
                with products(): columns[n] = dict(step_ms=1000 * seconds[n], peak_mb=peak_mb(loaded.device, lambda: step(0)), share_of_rate=operations(lambda: step(0)) / seconds[n] / rate)
                back()
            npo = columns["npo"]
            for row in columns.values(): row |= dict(time_ratio=row["step_ms"] / npo["step_ms"], memory_ratio=row["peak_mb"] / npo["peak_mb"])
            print(f"ratios are multiples of npo's; memory is what a step allocates beyond the weights, the optimiser's state and the kept residuals; the share is of {rate / 1e9:.0f} billion operations a second, which a large product reaches here")
        if "forget" in wanted:
            took = {n: time_to_forget(ref, task, n) for n in names}
            first = min((t for n, t in took.items() if t and n in PUBLISHED), default=None)
            for n, t in took.items(): columns.setdefault(n, {}).update(forgets_s="never" if t is None else round(t, 2), forgets_ratio=t / first if t and first else None)
            print("forgets_s: training until corrected recall is at most 0.1 and neighbours keep 0.97, looked at every few steps; the ratio is to the fastest published method that gets there")
        if columns:
            table = pd.DataFrame(columns).T.rename_axis("method").infer_objects()
            print(table.round(3).to_string())
            if out: table.round(4).to_csv(out)
        if "cost" in wanted:
            people = [target, *(e.name for e in known_entities(loaded, grades) if e.kind == task.target.kind and e.name != target)]
            cases = variations(loaded, sae, latents, grades, task, people)
            seconds = in_turn({case: step_of(t, m) for case, (t, m) in cases.items()}, max(1, rounds // 3), loaded.device)
            cost = pd.DataFrame([dict(what=what, how_much=n, step_ms=1000 * s) for (what, n), s in seconds.items()])
            cost["ratio"] = cost.step_ms / cost.groupby("what").step_ms.transform("first")
            print("what a step costs, beside the first line of its group"); print(cost.round(2).to_string(index=False))

if __name__ == "__main__": typer.run(main)
