"A sweep: no cell is lost or made twice, whoever kills it; what fails is tried again and reported."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from samu.workshop import sweeping as s
from samu.workshop.experiments import read_rows
from samu.workshop.registry import METHODS
from samu.workshop.store import UserError

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys
from pathlib import Path
import samu
from samu.workshop.sweeping import sweep
exp = samu.load("biographies")
people = [exp.entities[i].name for i in (7, 20)]
done = sweep(exp, people, ["triplet"], [0], Path(sys.argv[1]), 2, metrics=["target_recall", "retain_ratio"])
print(len(done.rows), "rows", done.failed)
"""


class Ray:
    "Ray's calls that a sweep makes, done at once in this process."

    class exceptions:
        class RayError(Exception):
            pass

    def remote(self, **options):
        def wrap(function):
            def call(box, *args):
                return lambda: function(box[0], *args)
            return SimpleNamespace(remote=call)
        return wrap

    def put(self, value):
        return value

    def wait(self, references, num_returns):
        return references[:1], references[1:]

    def get(self, reference):
        try:
            return reference()
        except ValueError as error:
            raise self.exceptions.RayError(str(error)) from error


def test_failures_are_tried_again_and_reported(tmp_path, monkeypatch):
    tried = []

    def make(exp, cell, metrics):
        tried.append(cell["target"])
        if cell["target"] == "B" and tried.count("B") < 2 or cell["target"] == "C":
            raise ValueError("no luck")
        return dict(target_recall=0.5)

    monkeypatch.setattr(s, "make_row", lambda exp, cell, metrics, maker, modules: make(exp, cell, metrics))
    jobs = [s.Job(dict(method="m", target=t, seed=0), "x") for t in "ABCD"]
    work, progress = s.Sweep(Ray(), tmp_path / "rows.csv", "", [], make, 2, ()), s.Progress(jobs)
    work.run(None, jobs, progress, 2, lambda: None)
    assert sorted(r["target"] for r in read_rows(tmp_path / "rows.csv")) == ["A", "B", "D"]
    assert tried.count("B") == 2 and tried.count("C") == 3
    assert list(progress.failed) == ["m C 0"] and "no luck" in progress.failed["m C 0"]
    again = s.Progress(jobs)
    s.Sweep(Ray(), tmp_path / "rows.csv", "", [], make, 0, ()).run(None, jobs, again, 2, lambda: None)
    assert tried.count("A") == 1 and tried.count("C") == 4 and len(again.rows) == 3


def test_names(tmp_path):
    (tmp_path / "n.csv").write_text("name\nAnna Baker\n\nNils Thorn\nAnna Baker\n")
    assert s.names_in(tmp_path / "n.csv") == (["Anna Baker", "Nils Thorn"], False)
    (tmp_path / "q.csv").write_text('"name"\n"Baker, Anna"\n')
    assert s.names_in(tmp_path / "q.csv") == (["Baker, Anna"], False)
    (tmp_path / "p.csv").write_text("name,kind,attribute,answers\nAnna Baker,person,town,Paris\n")
    assert s.names_in(tmp_path / "p.csv") == (["Anna Baker"], True)


def test_people_count_once(exp):
    name = exp.entities[7].name
    assert s.known_among(exp, [name, name.lower()]) == ([name], {})


def test_what_only_this_process_knows_is_refused_first(exp, monkeypatch, tmp_path):
    owner = lambda task: None  # noqa: E731
    owner.__module__ = "extension"  # as from --code: every cell failed in its worker
    monkeypatch.setitem(METHODS, "own", METHODS["ga"])
    monkeypatch.setitem(METHODS.owners, "own", owner)
    with pytest.raises(UserError, match="only this process knows 'own'"):
        s.sweep(exp, [exp.entities[7].name], ["own"], [0], tmp_path / "rows.csv", metrics=[])


def test_without_ray_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install 'ray"):
        s.start_ray(2, None)


BUSY = "ray's agents did not start within their 15 seconds: the machine is too busy"


def start(script, table):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.Popen([sys.executable, str(script), str(table)], env=environ, cwd=script.parent, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def test_killed_half_way_nothing_is_lost_or_made_twice(tmp_path, exp):
    pytest.importorskip("ray")
    script, table = tmp_path / "run.py", tmp_path / "rows.csv"
    script.write_text(SCRIPT)
    first, end = start(script, table), time.time() + 300
    while time.time() < end and first.poll() is None and not read_rows(table):
        time.sleep(0.2)
    if first.poll() is None:
        os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before, said = read_rows(table), first.stderr.read()
    if not before and "ray could not be started" in said:
        pytest.skip(BUSY)
    assert 0 < len(before) < 4, said[-2000:]
    out, err = start(script, table).communicate(timeout=400)
    if "ray could not be started" in err:
        pytest.skip(BUSY)
    after = read_rows(table)
    assert "4 rows {}" in out, err[-2000:]
    filled = [[{k: v for k, v in r.items() if v != ""} for r in rows] for rows in (before, after)]
    assert filled[1][:len(before)] == filled[0] and len(after) == 4  # later rows may bring further columns
    cells = {(r["method"], r["target"], r["seed"]) for r in after}
    assert len(cells) == 4 and {r["method"] for r in after} == {"original", "triplet"}


def test_an_address_where_nothing_listens_is_refused_at_once():
    "Ray tries again for minutes."
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(UserError, match=f"nothing answers at '{address}'.*--address"):
            s.start_ray(1, address)
    for address in ("a..b:6379", f"{'x' * 70}:6379"):
        with pytest.raises(UserError, match="nothing answers"):
            s.refuse_silent(address)
    for address in (None, "auto", "local"):
        s.refuse_silent(address)
