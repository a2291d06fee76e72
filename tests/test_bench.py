"The benchmark runs and prints its tables on the biographies; what the times are is not tested."
import sys

import bench
import pandas as pd
import pytest


def test_bench_prints_its_tables(tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.csv"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--methods", "triplet", "--steps", "2", "--rounds", "1", "--out", str(file)])
    bench.main()
    printed = capsys.readouterr().out
    for part in ("loading", "grading", "original", "training", "measuring", "saving", "ratios are multiples of npo's"):
        assert part in printed, part
    table = pd.read_csv(file, index_col="method")
    assert list(table.index) == ["triplet", "npo"] and (table > 0).all(axis=None)
    assert table.time_ratio["npo"] == table.memory_ratio["npo"] == 1


def test_bench_refuses_an_unknown_part(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--parts", "stpes"])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2 and "stpes" in capsys.readouterr().err
