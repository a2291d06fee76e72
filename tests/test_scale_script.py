"The script that measures a GPU runs from end to end at small shapes, and goes on where it was stopped."
import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LABELS = ["ours", "ours, LoRA", "npo", "ours, again", "npo, LoRA", "simnpo", "rmu"]


def run(out, *more):
    environ = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, ROOT / "nbs/results/scale.py", "--out", out, *more]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
    return done, list(csv.DictReader(out.open())) if out.is_file() else []


def test_small_shapes(tmp_path):
    out, small = tmp_path / "scale.csv", ["--small", "--steps", "2", "--warm-up", "1", "--shapes", "llama-3.1-8b"]
    done, rows = run(out, *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [r["label"] for r in rows] == LABELS and {r["way"] for r in rows} == {"1 + 2 steps"}
    assert all(float(r["step_ms"]) > 0 and int(r["trained"]) > 0 and not r["plan_gb"] for r in rows)
    older = [r | (dict(way="", planned_gb="9", step_ms="1") if r["label"] == "npo" else {}) for r in rows]
    with out.open("w", newline="") as f:
        table = csv.DictWriter(f, list(rows[0]))
        table.writeheader()
        table.writerows(older)
    done, again = run(out, *small, "--missing")
    assert done.stdout == "" and again == older, "every row has numbers"
    done, again = run(out, *small)
    assert done.stdout.count("\n") == 1 and done.stdout.startswith("llama-3.1-8b methods npo ")
    assert [r for r in again if r["label"] != "npo"] == [r for r in rows if r["label"] != "npo"]
    assert [r["way"] for r in again] == ["1 + 2 steps"] * 7 and again[2]["planned_gb"] == ""
    done, planned = run(out, *small, "--plan")
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(float(r["plan_gb"]) >= 0 for r in planned) and run(out, *small, "--plan")[0].stdout == ""


def test_a_gpu_is_needed(tmp_path):
    refused, _ = run(tmp_path / "x.csv")
    assert refused.returncode == 2 and "there is no GPU" in refused.stderr


def test_the_plan_agrees_with_what_was_measured():
    "On the GPU of the table: never far below, and within the 15 % that a plan may be off."
    rows = list(csv.DictReader((ROOT / "nbs/results/scale.csv").open()))
    pairs = [(float(r["plan_gb"]), float(r["peak_gb"])) for r in rows if r["peak_gb"].replace(".", "").isdigit()]
    assert len(pairs) >= 20 and all(-0.03 < planned / measured - 1 < 0.15 for planned, measured in pairs)
