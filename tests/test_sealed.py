"The sealed test's table is what its protocol says: its people, its methods, each cell once, the rules first."

import importlib.util
import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "nbs" / "results"
spec = importlib.util.spec_from_file_location("sealed_script", RESULTS / "sealed.py")
sealed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sealed)


@pytest.fixture(scope="module")
def rows():
    return pd.read_csv(RESULTS / "sealed.csv", comment="#")


@pytest.fixture(scope="module")
def people():
    return pd.read_csv(RESULTS / "sealed_people.csv")


def test_the_people_are_those_of_the_draw_and_no_others(rows, people):
    assert set(rows.target) == set(people.name) and not set(people.name) & set(sealed.USED)
    assert (people.groupby("kind").size() <= sealed.EACH).all() and set(people.kind) == set(sealed.KINDS)
    assert (people.facts.str.split("|").str.len() >= sealed.FEWEST_FACTS).all()
    assert (people.recall - people.prior >= sealed.LEAST_EXCESS).all()


def test_none_was_used_before(people):
    earlier = pd.concat(pd.read_csv(RESULTS / f"{n}.csv", comment="#") for n in ("real_people", "real_tuning"))
    assert not set(people.name) & set(earlier.target)


def test_the_first_tier_is_whole_for_its_first_seed(rows, people):
    methods, most = sealed.TIERS[1]
    assert most is None
    first = rows[rows.seed == 0].groupby("method").target.nunique()
    assert first.to_dict() == dict.fromkeys(["original", *methods], len(people))
    more = rows[rows.seed > 0]
    assert all(methods[m] > s for m, s in zip(more.method, more.seed, strict=True))


def test_each_cell_was_made_once_and_each_method_in_one_way(rows):
    assert not rows.duplicated(["method", "target", "seed"]).any()
    assert (rows.groupby("method").settings.nunique() == 1).all()
    assert (rows[rows.method != "original"].groupby("method").config.nunique() == 1).all()


def test_what_was_searched_on_others_ran_on_the_first_of_them(people):
    "The search saw no one of the sealed test; its best configuration, and no other, ran there."
    search = pd.read_csv(RESULTS / "real_search.csv", comment="#")
    assert not set(search.target) & set(people.name)
    tested = pd.read_csv(RESULTS / "sealed_searched.csv", comment="#")
    firsts = sealed.interleaved(people)
    for method, rows in tested[tested.method != "original"].groupby("method"):
        assert set(rows.target) == set(firsts[: len(rows)])
        tried = search[search.method == method].groupby("config").score.agg(["mean", "size"])
        best = json.loads(tried[tried["size"] == 6]["mean"].idxmax())
        assert all(json.loads(c).items() >= best.items() for c in rows.config)


def test_the_protocol_came_first():
    def when(file):
        shown = subprocess.run(
            ["git", "log", "--diff-filter=A", "--format=%at", "--", file], cwd=ROOT, capture_output=True,
            text=True)
        return [int(line) for line in shown.stdout.split()]

    protocol, table = when("nbs/results/protocol.md"), when("nbs/results/sealed.csv")
    if not protocol or not table:
        pytest.skip("no history: not a clone with git, or a shallow one")
    assert min(protocol) < min(table)
