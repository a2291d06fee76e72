"What is kept survives two writers and kills, and is never given for other content, code or settings."
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from copy import copy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from samu.workshop import registry, runtime, store
from samu.workshop.store import (
    UserError, atomic_folder, atomic_write, cache_folder, clear, code_digest, digest, entries, find_many,
    keep_many, kept, tensors_hash)

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "A cache of its own."
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(script, *arguments, package=ROOT, **environment):
    "A program that imports a package."
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=package,
                            env={**os.environ, **environment})


def output(process):
    "What a program printed; it must end well."
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


# ---------------------------------------------------------------- two writers

WRITER = """
import sys
from pathlib import Path
from samu.workshop.store import atomic_folder, atomic_write, cache_folder, digest, find_many, keep_many, kept
me = sys.argv[1]
big = "x" * 20_000
for i in range(150):
    keep_many("own", {f"{me}-{i}": [i, big]})
    keep_many("shared", {str(i): [i, me, big]})
    assert find_many("shared", [str(i)])[str(i)][0] == i
    assert kept("made", str(i % 7), lambda: {"n": i % 7, "text": big})["n"] == i % 7
    folder = cache_folder("folders") / str(i % 30)
    with atomic_folder(folder) as draft:
        (draft / "a").write_text(me + big)
        (draft / "b").write_text(me + big)
    assert (folder / "a").read_text() == (folder / "b").read_text()
    atomic_write(cache_folder("files") / "one", me + big)
"""


def test_two_writers(cache):
    "150 writes each, of the same and of different keys; a reader beside them sees whole values only."
    writers = [start(WRITER, name) for name in "ab"]
    names = [str(i) for i in range(150)]
    file = cache / "files" / "one"
    while any(w.poll() is None for w in writers):
        for key, value in find_many("shared", names).items():
            assert value[0] == int(key) and len(value[2]) == 20_000
        if file.is_file():
            assert len(file.read_text()) == 20_001
    for w in writers:
        output(w)
    assert len(find_many("shared", names)) == 150
    assert len(find_many("own", [f"{w}-{i}" for w in "ab" for i in range(150)])) == 300
    assert len(list((cache / "folders").glob("[0-9]*"))) == 30
    assert not list(cache.rglob(".draft-*"))
    counts = dict(zip(entries()["kind"], entries()["entries"]))
    assert counts == {"files": 1, "folders": 30, "made": 7, "own": 300, "shared": 150}


TENSOR_WRITER = """
import sys, torch
from samu.workshop.store import kept
for i in range(40):
    make = lambda: {"w": torch.full((50_000,), float(i)), "json": {"i": i}}
    made = kept("weights", str(i), make, tensors=True)
    assert made["json"] == {"i": i} and bool((made["w"] == i).all())
"""


def test_two_writers_of_tensors(cache):
    for w in [start(TENSOR_WRITER), start(TENSOR_WRITER)]:
        output(w)
    assert len(list((cache / "weights").glob("*.safetensors"))) == 40
    assert not list(cache.rglob(".draft-*"))


# ---------------------------------------------------------------- kills

KILLS = """
import json, os, random, signal, sys, time
import torch
from pathlib import Path
from samu.workshop.store import atomic_folder, cache_folder, find_many, keep_many, kept
torch.set_num_threads(1)

def rows(i):
    keep_many("rows", {f"{i}-{k}": {"i": i, "k": k, "text": "x" * 50_000} for k in range(20)})

def tensors(i):
    make = lambda: {"w": torch.full((300_000,), float(i)), "json": {"i": i}}
    kept("tensors", str(i), make, tensors=True)

def folders(i):
    with atomic_folder(cache_folder("folders") / str(i)) as draft:
        for k in range(20):
            (draft / str(k)).write_text(str(i) * 20_000)

def check_rows(begin, last):
    for i in range(begin, last + 1):
        found = find_many("rows", [f"{i}-{k}" for k in range(20)])
        assert len(found) in (0, 20), len(found)
        assert all(v["i"] == i and len(v["text"]) == 50_000 for v in found.values())

def check_tensors(begin, last):
    def never():
        raise KeyError
    for i in range(begin, last + 1):
        try:
            found = kept("tensors", str(i), never, tensors=True)
        except KeyError:
            continue
        assert found["json"] == {"i": i} and bool((found["w"] == i).all())

def check_folders(begin, last):
    for folder in (f for i in range(begin, last + 1) if (f := cache_folder("folders") / str(i)).exists()):
        files = {f.name: f.read_text() for f in folder.iterdir()}
        assert set(files) == {str(k) for k in range(20)} and set(files.values()) == {folder.name * 20_000}

rng, last, killed = random.Random(0), 0, 0
plan = [(rows, check_rows, 20), (tensors, check_tensors, 15), (folders, check_folders, 15)]
for write, check, times in plan:
    for _ in range(times):
        begin, (read, tell) = last + 1, os.pipe()
        child = os.fork()
        if child == 0:
            i = begin
            while True:
                os.write(tell, f"{i} ".encode())
                write(i)
                i += 1
        time.sleep(rng.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        os.close(tell)
        with open(read) as begun:
            last = int((begun.read().split() or [last])[-1])
        check(begin, last)
        last += 1
        write(last)                                        # the next writer is not hindered
    check(0, last)
drafts = [str(p) for p in cache_folder().glob("*/.draft-*")]
print(json.dumps({"killed": killed, "drafts": len(drafts), "written": last}))
"""


@POSIX
def test_fifty_kills(cache):
    "After each kill every entry is whole or absent, and the next write works."
    found = json.loads(output(start(KILLS)))
    assert found["killed"] == 50
    assert found["drafts"] > 0, "no kill came in the middle of a draft"
    assert found["written"] > 150
    assert "tensors" in set(entries()["kind"])
    for draft in cache.rglob(".draft-*"):
        os.utime(draft, (0, 0))
    clear()
    assert len(entries()) == 0 and not list(cache.rglob(".draft-*"))


# ---------------------------------------------------------------- the folder

def test_cache_folder_expands_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("SAMU_CACHE", "~/x")
    assert cache_folder("saes") == tmp_path / "x" / "saes" and (tmp_path / "x" / "saes").is_dir()


def test_unwritable_cache_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "file" / "cache"))
    calls = []
    for kind in (False, True):
        with pytest.raises(UserError, match="SAMU_CACHE"):
            kept("trial", "key", lambda: calls.append(1), tensors=kind)
    assert not calls, "it must be said before anything is computed"
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "locked"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        cache_folder()


def test_damaged_database_is_a_user_error(cache):
    cache_folder()
    (cache / "results.sqlite").write_text("not a database " * 500)
    with pytest.raises(UserError, match="results.sqlite"):
        keep_many("trial", {"a": 1})


def test_a_store_that_is_being_written_is_not_to_be_deleted(cache, monkeypatch):
    "`samu cache --clear` beside a long writer said: make room, or delete it."
    keep_many("trial", {"a": 1})
    connect = store.sqlite3.connect
    monkeypatch.setattr(store.sqlite3, "connect", lambda file, timeout, **more: connect(file, timeout=0.1, **more))
    with contextlib.closing(connect(cache / "results.sqlite", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for use in (clear, lambda: keep_many("trial", {"b": 2})):
            with pytest.raises(UserError, match="locked.*another program.*again") as error:
                use()
            assert "delete" not in str(error.value)
    clear()
    assert len(entries()) == 0


def test_clear_spares_folders_of_others(cache):
    (cache / "photos").mkdir(parents=True)
    (cache / "photos" / "cat.png").write_text("meow")
    cache_folder("photos")
    (cache / "target").mkdir()
    (cache / "target" / store.TAG).write_text(store.TAG_TEXT.splitlines()[0] + "\n# This is of cargo.\n")
    (cache_folder("saes", "abc") / "weights").touch()
    keep_many("answers", {"a": 1})
    assert list(entries()["kind"]) == ["answers", "saes"]
    with pytest.raises(UserError, match="photos"):
        clear("photos")
    clear()
    assert (cache / "photos" / "cat.png").is_file() and len(entries()) == 0
    assert (cache / "target" / store.TAG).is_file()


def test_clear_beside_a_command_that_is_writing(cache):
    "A cleared folder lost its tag for good: neither `samu cache` nor `samu purge` saw what was put into it."
    def make():
        clear()
        return {"w": torch.ones(2)}
    kept("run", "k", make, tensors=True)
    assert list(entries()["kind"]) == ["run"] and store.kept_folders() == [cache / "run"]
    with atomic_folder(cache_folder("saes") / "a") as draft:
        (draft / "config.json").touch()
        clear()
        (draft / "weights").touch()
    assert sorted(f.name for f in (cache / "saes" / "a").iterdir()) == ["config.json", "weights"]
    clear()
    assert len(entries()) == 0


def test_atomic_folder_keeps_the_first_and_lets_errors_through(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "a") as draft:
            (draft / "t").write_text(text)
    assert (tmp_path / "a" / "t").read_text() == "first"
    with pytest.raises(OSError, match="mine"), atomic_folder(tmp_path / "a"):
        raise OSError("mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), atomic_folder(tmp_path / "file"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "file"]
    atomic_write(tmp_path / "u", "Schrödinger\r\n")
    assert (tmp_path / "u").read_bytes() == "Schrödinger\r\n".encode()


# ---------------------------------------------------------------- values and keys

def test_first_and_second_call_agree(cache):
    frame = pd.DataFrame({"name": ["a", None, "1975"], "x": [0.1 + 0.2, np.nan, np.inf], "n": [1, 2, 3]})
    frame["b"] = [True, False, True]
    numbers = [np.float32(0.5), np.int64(3), np.bool_(True)]
    values = [{"a": (1, 2.5, None), "b": "ä"}, numbers, frame, frame[:0], None]
    for i, value in enumerate(values):
        keys = (digest(i), digest(i), None)
        first, second, unkept = [kept("trial", key, partial(copy, value)) for key in keys]
        for other in (second, unkept):
            if isinstance(value, pd.DataFrame):
                pd.testing.assert_frame_equal(first, value)
                pd.testing.assert_frame_equal(first, other)
            else:
                assert first == other and repr(first) == repr(other)


def test_what_json_would_change_is_refused(cache):
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    odd = [object(), np.zeros(3), torch.zeros(1), {1, 2}, frame.rename(index=str), frame[1:],
           frame.rename(columns={"a": 1}), frame.astype("category"), pd.concat([frame, frame], axis=1)]
    for value in odd:
        with pytest.raises(TypeError):
            kept("trial", "key", partial(copy, value))
    assert not find_many("trial", ["key"])


def test_nothing_is_kept_under_no_key(cache):
    calls = []
    for tensors in (False, True):
        for _ in range(2):
            kept("trial", None, lambda: calls.append(1) or {}, tensors=tensors)
    assert len(calls) == 4 and "trial" not in set(entries()["kind"][entries()["entries"] > 0])


def test_tensors_come_back_as_they_were(cache):
    base = torch.randn(6, 4)
    made = {"t": base.T, "row": base[1], "same": base[1], "half": base.bfloat16(), "one": torch.tensor(3)}
    made["none"] = torch.zeros(0, 2)
    for _ in range(2):
        found = kept("trial", "key", lambda: made, tensors=True)
        assert tensors_hash(found) == tensors_hash(made)
    [file] = store.cache_folder("trial").glob("*.safetensors")
    for damage in (b"", file.read_bytes()[:-8]):
        file.write_bytes(damage)
        assert tensors_hash(kept("trial", "key", lambda: made, tensors=True)) == tensors_hash(made), "made again"
        assert len(file.read_bytes()) > 100


def test_a_name_that_is_no_unicode_is_escaped(tmp_path):
    store.atomic_write(tmp_path / "report.json", json.dumps(["caf\udce9 é"], ensure_ascii=False))
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == ["caf\udce9 é"]


def test_versions_are_part_of_every_key(cache, monkeypatch):
    keep_many("trial", {"a": 1})
    assert find_many("trial", ["a"]) == {"a": 1}
    monkeypatch.setattr(store, "versions", lambda: {"torch": "0.1"})
    assert not find_many("trial", ["a"])
    monkeypatch.undo()
    monkeypatch.setenv("SAMU_CACHE", str(cache))
    monkeypatch.setattr(store, "STORE_VERSION", store.STORE_VERSION + 1)
    assert not find_many("trial", ["a"])
    assert {"torch", "transformers", "sae-lens"} <= set(store.versions.__wrapped__())


def test_digest_sees_every_byte():
    a = torch.zeros(2000)
    b = a.clone()
    b[1000] = 5
    assert digest(a) != digest(b) and digest({"w": a}) != digest({"w": b})
    assert digest(a.numpy()) != digest(b.numpy())
    w = torch.randint(0, 9, (40, 50)).float()
    shuffled = w[:, torch.randperm(50)]
    assert w.sum() == shuffled.sum() and digest(w) != digest(shuffled)
    assert tensors_hash({"w": w}) != tensors_hash({"w": shuffled})
    assert digest(w) != digest(w.reshape(50, 40)) and digest(w) != digest(w.to(torch.float64))
    assert digest(torch.zeros(2)) != digest(torch.zeros(2, dtype=torch.int32))


def test_digest_is_canonical_and_refuses_objects():
    assert digest({"a": 1, "b": {2, 3}}) == digest({"b": {3, 2}, "a": 1})
    assert digest((1, 2)) == digest([1, 2]) and digest(np.float64(1.5)) == digest(1.5)
    different = [1, 1.0, True, "1", b"1", None, "None", Path("1"), [1], {1}, {1: 1}, [], {}, "", [[1]], -0.0]
    assert len({digest(v) for v in different}) == len(different)
    assert digest("ab", "c") != digest("a", "bc") and digest([1], [2]) != digest([1, [2]])
    layer, frame, array = torch.nn.Linear(1, 1), pd.DataFrame(), np.array([object()])
    for value in (object(), len, layer, frame, array, {"x": object()}, registry):
        with pytest.raises(TypeError, match="no digest"):
            digest(value)
    method = registry.Retain("a", "b")
    assert digest(method) != digest(registry.Retain("a", "c"))


# ---------------------------------------------------------------- code

TOY = {
    "rates.py": """
        "Constants."
        RATE = 0.5
        WORDS = frozenset(["one", "two", "three"])
        UNUSED = 1
        """,
    "helpers.py": """
        import contextlib, functools
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class Config:
            steps: int = 10
            names: tuple = ("a",)
            def double(self): return 2 * self.steps

        @contextlib.contextmanager
        def quiet(level=1):
            yield level

        @functools.cache
        def table(n): return [n] * 3

        def lazy():
            return 7
        """,
    "goals.py": """
        from .rates import RATE, WORDS
        from .helpers import Config, quiet, table
        from .workshop.registry import OBJECTIVES, objective, retain_loss, RETAIN

        @objective
        def triplet(x, weight=1.0):
            return x * RATE * weight if x in WORDS else [y for y in table(3)]

        @retain_loss("residual")
        def keep(task, batch):
            return 1

        def run(x):
            from .helpers import lazy
            from . import late
            with quiet():
                return triplet(x), Config().double(), lazy(), late.last
        PAIRS = {"a": triplet, "b": keep}
        """,
    "late.py": """
        last = 3
        """,
    "other.py": """
        def unrelated(): return 1
        """,
}
SHOW = """
import samu.goals, samu.other
from samu.workshop.registry import OBJECTIVES, RETAIN
from samu.workshop.store import code_digest
print(code_digest(samu.goals.run), code_digest(OBJECTIVES["triplet"]), code_digest(RETAIN["residual"]))
"""


def toy(folder, *edits):
    "A copy of the package with a few modules of its own, and edits (file, old, new)."
    workshop = folder / "samu" / "workshop"
    workshop.mkdir(parents=True)
    (folder / "samu" / "__init__.py").write_text('__version__ = "0"\n')
    for name in ("registry", "digests", "store"):
        shutil.copy(ROOT / "samu" / "workshop" / f"{name}.py", workshop)
    for name, text in TOY.items():
        (folder / "samu" / name).write_text(re.sub(r"(?m)^ {8}", "", text))
    for name, old, new in edits:
        file = folder / "samu" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    return folder


EDITS = {  # what is edited -> (must change, edits)
    "nothing": (False, []),
    "comments and docstrings": (False, [
        ("goals.py", "    return x * RATE", '    "What it does."\n    # why\n\n    return x * RATE'),
        ("rates.py", '"Constants."', '"Numbers."'),
        ("helpers.py", "    return 7", '    "Seven."\n    return 7')]),
    "a module that it does not reach": (False, [("other.py", "return 1", "return 2")]),
    "the objective": (True, [("goals.py", "x * RATE * weight", "x * RATE - weight")]),
    "a default": (True, [("goals.py", "weight=1.0", "weight=2.0")]),
    "a constant of another module": (True, [("rates.py", "RATE = 0.5", "RATE = 0.6")]),
    "a set of another module": (True, [("rates.py", '"two"', '"zwei"')]),
    "a field's default": (True, [("helpers.py", "steps: int = 10", "steps: int = 11")]),
    "a method of a class": (True, [("helpers.py", "2 * self.steps", "3 * self.steps")]),
    "a context manager's default": (True, [("helpers.py", "level=1", "level=2")]),
    "a cached function": (True, [("helpers.py", "[n] * 3", "[n] * 4")]),
    "what is imported inside": (True, [("late.py", "last = 3", "last = 4")]),
    "two entries of a table exchanged": (True, [
        ("goals.py", '"a": triplet, "b": keep', '"b": triplet, "a": keep')]),
    "the retain loss": (True, [("goals.py", "return 1\n", "return 2\n")]),
}


def test_edited_code_has_another_digest(tmp_path):
    "A copy of the package, edited, in another process, with another seed for hashes of words."
    shown = {}
    for i, (what, (_, edits)) in enumerate(EDITS.items()):
        folder = toy(tmp_path / str(i), *edits)
        process = start(SHOW, package=folder, PYTHONHASHSEED=str(i))
        shown[what] = output(process).split()
        assert all(re.fullmatch("[0-9a-f]{16}", d) for d in shown[what]), shown[what]
    same = shown["nothing"]
    for what, (changes, _) in EDITS.items():
        assert (shown[what][0] != same[0]) == changes, what
    for column, what in ((1, "the objective"), (2, "the retain loss")):
        assert shown[what][column] != same[column]


def helper(x):
    return x + 1


def test_outside_code_has_no_digest():
    def objective(residuals, aim, frozen):
        return residuals

    class Local:
        def __call__(self, x):
            return x

    @torch.no_grad()
    def decorated(x):
        return x

    wrapped = functools.wraps(registry.first_line)(lambda f: "other")
    outside = [objective, helper, lambda x: x, functools.partial(helper, 1), Local, Local(), Local().__call__,
               decorated, functools.cache(helper), wrapped, registry.Method("mine", helper),
               [registry.first_line, helper], sys.modules[__name__],
               registry.adding(registry.METRICS, "name", helper)]
    for value in outside:
        assert code_digest(value) is None, value
    inside = [registry.first_line, registry.Registry, registry, registry.Method("a", registry.first_line),
              functools.partial(registry.first_line, "text"), store.kept, runtime.Timer, runtime.matmul_dtype]
    found = [code_digest(value) for value in inside]
    assert None not in found and len(set(found)) == len(found)
    assert found == [code_digest(value) for value in inside]


def test_closures_count():
    "A function made by a function of this package is known by what it closes over."
    def decorator(name):
        return registry.adding(registry.OBJECTIVES, name, registry.first_line)
    assert code_digest(decorator("a")) != code_digest(decorator("b"))
    assert code_digest(registry.adding(registry.OBJECTIVES, "a", object())) is None


def test_a_replaced_entry_or_function_has_no_digest(monkeypatch):
    def mine(task, batch):
        return 0
    registry.RETAIN["trial"] = registry.Retain("trial", registry.first_line)
    first = code_digest(registry.RETAIN["trial"])
    registry.RETAIN["trial"] = registry.Retain("trial", registry.same_definition)
    assert first is not None and code_digest(registry.RETAIN["trial"]) not in (None, first)
    registry.RETAIN["trial"] = registry.Retain("trial", mine)
    assert code_digest(registry.RETAIN["trial"]) is None
    del registry.RETAIN["trial"]
    before = code_digest(runtime.matmul_dtype)
    monkeypatch.setattr(runtime, "rounded_forward", helper)
    assert before is not None and code_digest(runtime.matmul_dtype) is None


def test_an_edited_objective_gives_a_new_result(tmp_path, monkeypatch):
    "The whole way: result, edit, result, in a script and in the package."
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "cache"))
    script = """
import samu.goals
from samu.workshop.store import code_digest, kept
print(kept("run", code_digest(samu.goals.lossy), lambda: samu.goals.lossy()))
"""
    added = ("goals.py", "PAIRS =", "def lossy():\n    return VALUE\nPAIRS =")
    for i, value in enumerate((1, 2, 1)):
        edit = (added[0], added[1], added[2].replace("VALUE", str(value)))
        assert output(start(script, package=toy(tmp_path / str(i), edit))).strip() == str(value)
    own = """
from samu.workshop.store import code_digest, entries, kept
def lossy():
    return VALUE
print(kept("own", code_digest(lossy), lossy), code_digest(lossy), list(entries()["kind"]))
"""
    for value in (1, 2):
        assert output(start(own.replace("VALUE", str(value)))).strip() == f"{value} None ['run']"


# ---------------------------------------------------------------- registries, imports, random numbers, time

def test_a_name_is_taken_once():
    animals = registry.Registry("animal")
    exported, edited = {}, {}
    for found, text in ((exported, "4"), (edited, "5")):
        exec(f"def cat(): return {text}", found)
    here, there = exported["cat"], edited["cat"]
    here.__module__, there.__module__ = "samu.animals", "__main__"
    animals.add("cat", 4, here)
    animals.add("cat", 4, here)
    with pytest.raises(UserError, match="animal 'cat' is already registered"):
        animals.add("cat", 5, there)
    with pytest.raises(UserError, match="did you mean cat"):
        animals.get_or_raise("cta")
    with pytest.raises(UserError, match="must be a function, not a partial; write a def around it"):
        registry.objective(partial(print), name="odd")
    assert "odd" not in registry.OBJECTIVES


def test_import_is_light():
    script = """
import sys, resource
before = resource.getrusage(resource.RUSAGE_SELF)
import samu.workshop.store
after = resource.getrusage(resource.RUSAGE_SELF)
heavy = {"torch", "pandas", "numpy", "safetensors", "transformers"} & set(sys.modules)
print(heavy or "", after.ru_utime - before.ru_utime)
"""
    pytest.importorskip("resource")
    assert min(float(output(start(script)).strip()) for _ in range(3)) < 0.3


def test_seeding_spares_the_callers_generators(monkeypatch):
    def seeds_all(seed):
        raise AssertionError("every CUDA generator was seeded")
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds_all)
    before = torch.get_rng_state()
    draws = []
    for device in (None, torch.device("cpu")):
        with runtime.seeded(3, device):
            draws.append(torch.rand(4))
    assert torch.equal(*draws) and torch.equal(before, torch.get_rng_state())
    with pytest.raises(KeyError), runtime.seeded(3):
        torch.rand(1)
        raise KeyError
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
def test_on_a_gpu_seeds_steps_and_memory():
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    draws = []
    for _ in range(2):
        with runtime.seeded(3, device):
            draws.append(torch.rand(4, device=device))
    assert torch.equal(*draws) and torch.equal(before, torch.cuda.get_rng_state())
    a = torch.rand(6000, 6000, device=device)
    with runtime.Timer(device) as timer:
        for _ in range(5):
            a @ a
            timer.lap()
    assert timer.seconds * 1000 >= 5 * timer.step_ms * 0.8 > 1
    assert timer.peak_mb < 1500


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the platform cannot reset the peak")
def test_peak_memory_is_not_inherited():
    cpu = torch.device("cpu")
    with runtime.Timer(cpu) as large:
        torch.ones(100 * 2**20)
    with runtime.Timer(cpu) as small:
        torch.ones(10)
    assert small.peak_mb < large.peak_mb - 300


def test_rounded_products_follow_the_weights():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False)).requires_grad_(False)
    x = torch.randn(3, 8)
    with runtime.matmul_dtype(model, "bfloat16") as name:
        first = model(x)
        model[0].weight.mul_(2)
        assert name == "bfloat16" and torch.equal(model(x), 2 * first)
        model[0].weight.requires_grad_(True)
        model(x).sum().backward()
        assert model[0].weight.grad is not None and model[0].weight.grad.dtype == torch.float32
    assert "forward" not in vars(model[0])
    with pytest.raises(UserError, match="float8"), runtime.matmul_dtype(model, "float8"):
        pass


def test_bad_devices_are_user_errors(monkeypatch):
    for device in ("gpu", "cuda:77"):
        with pytest.raises(UserError):
            runtime.pick_device(device)
    monkeypatch.setenv("SAMU_DEVICE", "cpu")
    assert runtime.pick_device() == torch.device("cpu")


def test_what_was_computed_in_another_way_is_kept_apart():
    "Numbers made under autocast had been served to later calls without it."
    usual = store.full_key("k")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert store.full_key("k") not in (usual, store.full_key("l"))
    assert store.full_key("k") == usual
