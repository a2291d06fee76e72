"The script that measures a GPU runs from end to end at small shapes, and goes on where it was stopped."
import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_small_shapes(tmp_path):
    out = tmp_path / "scale.csv"
    environ = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, ROOT / "nbs/results/scale.py", "--small", "--steps", "2", "--out", out,
               "--shapes", "llama-3.1-8b"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(csv.DictReader(out.open()))
    assert [r["label"] for r in rows] == ["ours", "ours, LoRA", "npo", "npo, LoRA", "simnpo", "rmu"]
    assert all(float(r["step_ms"]) > 0 and float(r["planned_gb"]) > 0 for r in rows)
    again = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
    assert again.stdout == "" and list(csv.DictReader(out.open())) == rows
    refused = subprocess.run([sys.executable, ROOT / "nbs/results/scale.py", "--out", tmp_path / "x.csv"],
                             env=environ, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "there is no GPU" in refused.stderr
