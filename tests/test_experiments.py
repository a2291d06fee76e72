"One table of rows: taken up again, shared by programs, never of other settings."
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from samu.workshop.experiments import read_rows, run_grid, write_rows
from samu.workshop.measuring import fill_grid
from samu.workshop.store import UserError

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["1975", "#1 Dad", "Doe, Jane", 'Erwin "Ernie" Schrödinger', "NA", "None", "True", "1e3", " spaced ",
         "two\nlines", "李小龙", ""]


def cells_for(names, seeds=(0,)):
    return [{"target": n, "seed": s} for n in names for s in seeds]


def measure(cell):
    "A cheap stand-in for unlearning and evaluating."
    return {"recall": len(cell["target"]) / 3, "stand_in": "1975", "stopped": True, "gold": None}


class Counting:
    "Counts how often a cell is made."
    def __init__(self):
        self.made = []

    def __call__(self, cell):
        self.made.append(cell["target"])
        return measure(cell)


def test_any_name_survives(tmp_path):
    "Names that look like comments, numbers, missing values or several columns are made once and found again."
    make, file = Counting(), tmp_path / "#1, out" / "rows.csv"
    first = run_grid(cells_for(NAMES), make, file, "settings", "samu compare #1\n--seeds 0")
    second = run_grid(cells_for(NAMES), make, file, "settings")
    assert make.made == NAMES
    pd.testing.assert_frame_equal(first, second)
    assert list(first["target"]) == NAMES and list(first["stand_in"]) == ["1975"] * len(NAMES)
    assert first["stopped"].dtype == bool and first["gold"].isna().all() and first["seed"].dtype.kind == "i"
    text = file.read_bytes().decode("utf-8")
    assert "Schrödinger" in text
    assert '"settings"' in text.splitlines()[1]


def test_the_command_is_in_the_first_line(tmp_path):
    file = tmp_path / "rows.csv"
    for names in (["a"], ["a", "b"]):
        run_grid(cells_for(names), measure, file, "settings", "samu compare\n--seeds 0 # again")
    assert file.read_text().splitlines()[0] == "# samu compare --seeds 0 # again"
    assert [r["target"] for r in read_rows(file)] == ["a", "b"]


def test_rows_of_other_settings_are_never_given(tmp_path):
    file = tmp_path / "rows.csv"
    old = run_grid(cells_for("ab"), lambda cell: {"recall": 1.0}, file, "old")
    new = run_grid(cells_for("ab"), lambda cell: {"recall": 0.0, "added": 2}, file, "new")
    assert list(old["recall"]) == [1.0, 1.0]
    assert list(new["recall"]) == [0.0, 0.0] and list(new["added"]) == [2.0, 2.0]
    again = run_grid(cells_for("ba"), Counting(), file, "old")
    assert list(again["target"]) == ["b", "a"] and list(again["recall"]) == [1.0, 1.0]
    assert len(read_rows(file)) == 4


def test_only_the_cells_that_were_asked_for(tmp_path):
    make, file = Counting(), tmp_path / "rows.csv"
    run_grid(cells_for("abc", seeds=(0, 1)), make, file, "s")
    rows = run_grid([{"target": "c", "seed": 1}, {"target": "a", "seed": 0}], make, file, "s")
    assert len(make.made) == 6 and rows[["target", "seed"]].values.tolist() == [["c", 1], ["a", 0]]


def test_cells_are_exact_and_results_have_six_digits(tmp_path):
    file, value, made = tmp_path / "rows.csv", 1 / 3, []

    def make(cell):
        made.append(cell)
        return {"x": np.float32(1 / 3), "n": np.int64(3), "nan": float("nan")}
    for _ in range(2):
        rows = run_grid([{"lr": value}], make, file, "s")
    assert len(made) == 1 and rows["lr"][0] == value
    assert rows["x"][0] == 0.333333 and rows["n"][0] == 3 and np.isnan(rows["nan"][0])
    with pytest.raises(TypeError, match="numbers and words"):
        run_grid([{"lr": 2.0}], lambda cell: {"x": [1]}, file, "s")


def test_without_a_file_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(run_grid(cells_for("ab"), measure, None, "s")["target"]) == ["a", "b"]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_or_written_is_a_user_error(tmp_path):
    foreign = tmp_path / "real_people.csv"
    foreign.write_text("# by hand\ntarget,recall\nTiger Woods,0.5\n")
    make = Counting()
    with pytest.raises(UserError, match="no table of this package"):
        run_grid(cells_for("a"), make, foreign, "s")
    assert foreign.read_text().endswith("Tiger Woods,0.5\n")
    with pytest.raises(UserError, match="cannot be written"):
        run_grid(cells_for("a"), make, foreign / "rows.csv", "s")
    with pytest.raises(UserError, match="several workers"):
        run_grid(cells_for("a"), lambda cell: {}, tmp_path / "rows.csv", "s", workers=2)
    assert not make.made


@pytest.mark.parametrize("text, says", [
    ('"target","recall"\n"Ann",0.5\n', "no column 'settings'"),
    ('"target","settings","settings"\n"Ann","s","s"\n', "a column twice"),
    ('"target","settings"\n"Ann","s"\n"Bob","s",1\n', "row 2 has a cell too many or too few"),
    ('# how\n"target","settings","recall"\n"Ann","s"\n', "row 1 has a cell too many or too few"),
])
def test_a_table_edited_by_hand_is_refused_before_any_work(tmp_path, text, says):
    file, make = tmp_path / "rows.csv", Counting()
    file.write_text(text)
    with pytest.raises(UserError, match=f"{says}.*; mend it, or name another"):
        run_grid(cells_for("a"), make, file, "s")
    assert not make.made and file.read_text() == text


@pytest.mark.parametrize("column", ["target", "perplexity"])
def test_a_column_taken_out_by_hand_is_missed(tmp_path, column):
    sae = SimpleNamespace(cfg=SimpleNamespace(), state_dict=dict)
    exp = SimpleNamespace(id="e", name="m", layer=0, seed=0, dtype="torch.float32", settings={}, sae=sae)
    file, made = tmp_path / "rows.csv", []

    def make(exp, cell, metrics, gold):
        return made.append(cell) or dict(perplexity=1.0)

    def fill():
        fill_grid(exp, [([dict(target="a")], [])], make, ["perplexity"], False, file, 1, "")
    fill()
    write_rows([{k: v for k, v in r.items() if k != column} for r in read_rows(file)], file, "")
    with pytest.raises(UserError, match=f"lacks the column '{column}'; put it back"):
        fill()
    assert len(made) == 1


def test_a_folder_is_no_table(tmp_path):
    make = Counting()
    with pytest.raises(UserError, match="no table of this package .*Is a directory"):
        run_grid(cells_for("a"), make, tmp_path, "s")
    assert not make.made


def test_a_failing_cell_leaves_the_others(tmp_path):
    def fails(cell):
        if cell["target"] == "b":
            raise RuntimeError("out of memory")
        return measure(cell)
    file = tmp_path / "rows.csv"
    with pytest.raises(RuntimeError, match="out of memory"):
        run_grid(cells_for("abc"), fails, file, "s")
    make = Counting()
    assert len(run_grid(cells_for("abc"), make, file, "s")) == 3 and make.made == ["b", "c"]


SCRIPT = """
import sys, time
from samu.workshop.experiments import run_grid
file, log, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
def make(cell):
    with open(log, "a") as f:
        f.write(f"{cell['n']}\\n")
    time.sleep(pause)
    return {"square": cell["n"] ** 2, "name": "Schr\\u00f6dinger"}
rows = run_grid([{"n": n} for n in range(40)], make, file, "s", "a command")
assert list(rows["square"]) == [n ** 2 for n in range(40)], rows
"""


def start(*arguments, **environment):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)], cwd=ROOT, text=True,
                            env={**os.environ, **environment}, stderr=subprocess.PIPE)


def test_two_programs_on_one_file(tmp_path):
    "They share the cells: each row is made once, none is lost. For one the platform's encoding is ASCII."
    file, log = tmp_path / "rows.csv", tmp_path / "log"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    programs = [start(file, log, 0.02), start(file, log, 0.02, **ascii_only)]
    for p in programs:
        assert p.wait() == 0, p.stderr.read()
    assert sorted(int(r["n"]) for r in read_rows(file)) == list(range(40))
    assert sorted(map(int, log.read_text().split())) == list(range(40))
    assert not list(tmp_path.glob(".rows.csv-*.lock")) and not list(tmp_path.glob(".draft-*"))


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_kill_in_the_middle(tmp_path):
    "What was made stays, what was being made is made again, and no lock is left."
    file, log = tmp_path / "rows.csv", tmp_path / "log"
    for wanted in (5, 12, 20):
        program = start(file, log, 0.02)
        while len(read_rows(file)) < wanted and program.poll() is None:
            time.sleep(0.01)
        program.send_signal(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL
        assert [r["n"] for r in read_rows(file)] == [float(n) for n in range(len(read_rows(file)))]
    before = len(read_rows(file))
    program = start(file, log, 0)
    assert program.wait(timeout=60) == 0, program.stderr.read()
    assert 20 <= before < 40 and sorted(r["n"] for r in read_rows(file)) == [float(n) for n in range(40)]
    assert len(log.read_text().split()) <= 40 + 3, "only the cells that were being made are made again"


def test_workers_make_the_same_table(tmp_path):
    file = tmp_path / "rows.csv"
    alone = run_grid(cells_for(NAMES), measure, None, "s")
    together = run_grid(cells_for(NAMES), measure, file, "s", workers=2)
    pd.testing.assert_frame_equal(alone, together)
    assert len(read_rows(file)) == len(NAMES) and not multiprocessing.active_children()


def test_rows_may_differ_in_columns(tmp_path):
    file = tmp_path / "rows.csv"
    write_rows([{"a": 1.0, "settings": "s"}, {"b": "x", "settings": "s"}], file, "")
    assert [list(r.values()) for r in read_rows(file)] == [[1.0, "s", ""], ["", "s", "x"]]
