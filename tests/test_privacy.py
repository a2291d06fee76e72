"After a purge a search finds nothing that the command did not name; what is given away holds no name."
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from samu.workshop import privacy as p
from samu.workshop.store import UserError, cache_folder, find_many, keep_many
from samu.workshop.tables import Entity

MARY = Entity("Zoë Quist", "person", dict(town=("Ulm", "Neu-Ulm"), job=("glassblower",), team=("St",)))
OTHER = Entity("Bruno Falk", "person", dict(town=("Bern",)))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "cache"))
    keep_many("answers", {"a": " Ulm, I think", "b": " Bern", "c": "Zoe Quist was there", "d": "ulmus"})
    keep_many("grades", {"g": [dict(name="Zoë Quist", right=2)]})
    run = cache_folder("run")
    (run / "note.json").write_text(json.dumps({"who": "Zoë Quist"}))
    (run / "other.json").write_text("{}")
    (cache_folder("models") / "tokenizer.json").write_text('{"Ulm": 3}')
    (tmp_path / "cache" / "thesis").mkdir()
    (tmp_path / "cache" / "thesis" / "acknowledgements.tex").write_text("To my wife")
    return tmp_path / "cache"


@pytest.fixture
def results(tmp_path):
    out = tmp_path / "out"
    (out / "model").mkdir(parents=True)
    card = dict(weights_sha256="ab" * 32, base_setup="x", forgotten=["Zoë Quist", "Bruno Falk"],
                entities=[dict(name=e.name, kind=e.kind, facts=e.facts) for e in (MARY, OTHER)])
    (out / "model" / "samu.json").write_text(json.dumps(card))
    (out / "report.json").write_text(json.dumps(dict(target=["Zoë Quist"])))
    (out / "rows.csv").write_text('# how\n"target","settings"\n"Zoë Quist",0\n"Bruno Falk",0\n')
    (out / "figure.png").write_bytes(b"\x89PNG")
    (out / "own.txt").write_text("my notes on zoe quist")
    (out / "theirs").mkdir()
    (out / "theirs" / "report.json").write_text("Zoë Quist's report, by somebody else")
    (out / ".samu").write_text("figure.png\nreport.json\nrows.csv\n")
    return out


def ship(model):
    "What `Run.save` does to a card."
    card, private = p.take_names_out(json.loads((model / "samu.json").read_text()))
    (model / "samu.json").write_text(json.dumps(card))
    p.write_private(model, card["salt"], private)


def search(folder, *words):
    "Files below a folder in whose bytes one of the words stands, plainly or as JSON escapes it."
    forms = [f.encode() for w in words for f in (w, json.dumps(w)[1:-1])]
    return {f for f in Path(folder).rglob("*") if f.is_file() and any(w in f.read_bytes() for w in forms)}


def test_nothing_is_left_that_is_not_named(cache, results):
    assert len(search(cache, "Zoë Quist", "Ulm")) >= 3 and len(search(results, "Zoë Quist")) == 4
    found = p.purge("zoë  quist", [MARY, OTHER], [results])
    left = {Path(f.place) for f in found if f.done.startswith("left")}
    for folder in (cache, results):
        assert search(folder, "Zoë Quist", "Zoe Quist", "zoe quist", "Ulm", "Neu-Ulm", "glassblower") <= left
    assert left == {cache / "models" / "tokenizer.json", results / "own.txt", results / "theirs" / "report.json"}
    assert find_many("answers", "abcd") == {"b": " Bern", "d": "ulmus"}
    assert (cache / "run" / "other.json").is_file() and not (results / "figure.png").exists()
    assert "Bruno Falk" in (results / "rows.csv").read_text() and "# how" in (results / "rows.csv").read_text()
    card = json.loads((results / "model" / "samu.json").read_text())
    assert card["forgotten"] == ["Bruno Falk"] and [e["name"] for e in card["entities"]] == ["Bruno Falk"]


def test_a_missing_folder_is_refused_before_anything_is_deleted(cache, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        p.purge("Zoë Quist", [MARY], [tmp_path / "nowhere"])
    assert len(find_many("answers", "abcd")) == 4


def test_other_scripts():
    table = [Entity("山田太郎", "person", dict(town=("東京",), job=("画家",)))]
    terms = p.terms_of("山田太郎", table)
    assert p.holds("答えは山田太郎さんです", terms) and p.holds("彼は東京にいる", terms)


def test_what_others_keep_beside_the_cache_is_not_read(cache):
    "Whoever points SAMU_CACHE to a folder with other things in it loses none of them."
    assert not [f for f in p.purge("To My", [Entity("To my", "person")]) if f.done == "removed"]
    assert (cache / "thesis" / "acknowledgements.tex").is_file()
    assert p.terms_of("Bo", [Entity("Bo", "p", dict(town=("St", "Ulm")))]) == ["bo", "ulm"]
    with pytest.raises(UserError, match="no letter"):
        p.purge(" ?! ", [])


def test_a_damaged_file_of_names_is_refused(results):
    (results / "private.json").write_text('{"half')
    for act in (lambda: ship(results / "model"), lambda: p.read_card(results / "model")):
        with pytest.raises(UserError, match="private.json' is damaged.*put a copy back"):
            act()


def test_only_the_owner_reads_what_names_people(cache, results):
    assert stat.S_IMODE((cache / "results.sqlite").stat().st_mode) == 0o600
    ship(results / "model")
    p.keep_private(results)
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in results.rglob("*") if f.is_file()}
    assert modes.pop("samu.json") == 0o644 and set(modes.values()) == {0o600}


def test_the_shipped_folder_holds_no_name(results):
    ship(results / "model")
    assert not search(results / "model", "Zoë", "Quist", "Bruno", "Ulm", "glassblower")
    assert p.read_card(results / "model")["forgotten"] == ["Zoë Quist", "Bruno Falk"]
    (results / "private.json").rename(results / "elsewhere.json")
    card = p.read_card(results / "model")
    assert len(card["cases"]) == 2 and p.forgotten_names(card, [OTHER, MARY]) == ["Zoë Quist", "Bruno Falk"]
    with pytest.raises(UserError, match="no name in the table"):
        p.forgotten_names(card, [replace(MARY, name="Ana")])


def test_two_models_beside_each_other_keep_their_names(cache, results):
    ship(results / "model")
    other = results / "other"
    other.mkdir()
    (other / "samu.json").write_text(json.dumps(dict(weights_sha256="cd" * 32, forgotten=["Ana Bell"])))
    ship(other)
    assert p.read_card(results / "model")["forgotten"] == ["Zoë Quist", "Bruno Falk"]
    p.purge("Zoë Quist", [MARY], [results])
    assert p.read_card(other)["forgotten"] == ["Ana Bell"] and not search(results / "private.json", "Zoë", "Ulm")


def test_weights_are_not_read_as_words(cache):
    "A purge read whole models as text, and remembered them: 21 GB for a cache of some hundred megabytes."
    import tracemalloc
    with (cache_folder("run") / "w.safetensors").open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    p.purge("Zoë Quist", [MARY], [])
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
