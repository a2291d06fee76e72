"""What a person costs on this machine: the parts of `samu unlearn`, and each method's step and memory beside NPO's.

    python tests/bench.py                          the biographies: minutes
    python tests/bench.py --setup gemma-3-270m     a real model: its preparation first, then half an hour
    python tests/bench.py --parts steps            only the table of methods

Ratios, since times differ from machine to machine and from hour to hour. Methods take turns, so that a busy minute
hits all of them.
"""
import argparse
import gc
import random
import sys
import tempfile
from pathlib import Path

import pandas as pd

METHODS = ["triplet", "match", "mean_residual", "stand_in+stand_in_residual", "two_sided", "ga", "graddiff", "npo",
           "simnpo", "idk_dpo", "refusal", "rmu", "crisp"]


def command_parts(setup, target):
    "Runs the whole command with a seed that nobody has used, so that training and measuring are not taken from the store."
    from samu.cli import app
    seed = random.randrange(1000, 10**6)
    with tempfile.TemporaryDirectory() as out:
        app(["unlearn", target, "--setup", setup, "--seed", str(seed), "--out", out + "/bench"], standalone_mode=False)


def held_mb(device):
    "Memory that is in use now: of the GPU, or of this process where Linux tells."
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def step_table(exp, target, methods, steps, rounds):
    "Median milliseconds of a step, memory that a run adds at its peak and its seconds, with ratios to NPO."
    from samu.forgetting import unlearn

    rows = []
    for _ in range(rounds):
        for name in methods:
            gc.collect()
            before = held_mb(exp.device)
            run = unlearn(exp, target, name, keep=False, steps=steps)
            run.restore()
            added = max(run.peak_mb - before, 0.1)
            rows.append(dict(method=name, step_ms=run.step_ms, added_mb=added, seconds=run.seconds))
    table = pd.DataFrame(rows).groupby("method", sort=False).median()
    for column, ratio in (("step_ms", "time_ratio"), ("added_mb", "memory_ratio"), ("seconds", "run_ratio")):
        table[ratio] = table[column] / table.loc["npo", column]
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setup", default="biographies", help="name of a setup, or folder")
    parser.add_argument("--target", help="who is forgotten; the eighth known entity if left out")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas; npo is always among them")
    parser.add_argument("--steps", type=int, default=15, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each method")
    parser.add_argument("--parts", default="command,steps", help="which tables: command, steps")
    parser.add_argument("--out", help="CSV for the table of methods")
    args = parser.parse_args()
    wanted = args.parts.split(",")
    if set(wanted) - {"command", "steps"}:
        parser.error(f"--parts is command, steps or both, not {args.parts!r}")
    import samu
    exp = samu.load(args.setup)
    target = args.target or exp.known[7].name
    if "command" in wanted:
        print(f"samu unlearn {target!r} --setup {args.setup}, with everything prepared")
        command_parts(args.setup, target)
    if "steps" in wanted:
        methods = list(dict.fromkeys([*args.methods.split(","), "npo"]))
        table = step_table(exp, target, methods, args.steps, args.rounds)
        print(f"{exp.name} on {exp.device}, {target}, runs of {args.steps} steps; ratios are multiples of npo's")
        print(table.round(3).to_string())
        if args.out:
            table.round(4).to_csv(args.out)


if __name__ == "__main__":
    sys.exit(main())
