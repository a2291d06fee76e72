"""The benchmark runs and prints its three tables; what the times are is not tested."""
import os, subprocess, sys
from pathlib import Path

def test_bench_prints_its_tables(tmp_path):
    here = Path(__file__).parent
    env = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, str(here / "bench.py"), "--methods", "triplet", "--rounds", "1", "--out", str(tmp_path / "bench.csv")], capture_output=True, text=True, env=env, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
    import pandas as pd
    table = pd.read_csv(tmp_path / "bench.csv", index_col="method")
    assert list(table.index) == ["triplet", "npo"]
    assert table.time_ratio["npo"] == table.memory_ratio["npo"] == 1
    assert 0 < table.share_of_rate["triplet"] < 1
    assert table.forgets_s["triplet"] != "never"                 # forgetting itself must work here
    for what in ("batches of prompts about the target", "targets in one run", "latents of the dictionary, match"): assert what in ran.stdout, what

def test_bench_refuses_an_unknown_part():
    ran = subprocess.run([sys.executable, str(Path(__file__).with_name("bench.py")), "--parts", "stpes"], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 2 and "stpes" in ran.stderr
