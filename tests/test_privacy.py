"After a purge a search finds nothing that the command did not name; what is given away holds no name."
import json
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from samu.workshop import loop, privacy as p
from samu.workshop.experiments import read_rows, write_rows
from samu.workshop.store import UserError, atomic_write, cache_folder, find_many, keep_many
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
    rows = [dict(target=e.name, job="potter", settings="ab", recall=0.5) for e in (MARY, OTHER)]
    write_rows(rows, out / "rows.csv", "how")
    (out / "figure.png").write_bytes(b"\x89PNG")
    (out / "own.txt").write_text("my notes on zoe quist")
    (out / "theirs").mkdir()
    (out / "theirs" / "report.json").write_text("Zoë Quist's report, by somebody else")
    (out / ".samu").write_text("figure.png\nreport.json\nrows.csv\n")
    return out


def ship(model):
    "What `Run.save` does to a card."
    card, private = p.take_names_out(json.loads((model / "samu.json").read_text()), [])
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
    assert card["forgotten"] == [p.case_of("Zoë Quist", p.salt_of(card)), "Bruno Falk"] and "entities" not in card


def test_rows_of_others_stay_a_table(cache, results):
    "They were written without quotes, so that no comparison could read them, and the next purge took all."
    for person in (MARY, replace(OTHER, name="Ana Bell")):
        p.purge(person.name, [MARY, OTHER], [results])
    [row] = read_rows(results / "rows.csv")
    assert row == dict(target="Bruno Falk", job="potter", settings="ab", recall=0.5)
    own = "name;settings;\"settings\"\nZoë Quist;1;2\n"
    (results / "mine.csv").write_text(own)
    done = {Path(f.place).name: f.done for f in p.purge("Zoë Quist", [MARY], [results])}
    assert (results / "mine.csv").read_text() == own and "no table of this package" in done["mine.csv"]


def test_who_shares_an_answer_or_a_part_of_the_name_stays(cache, tmp_path):
    table = [Entity(n, "person", dict(job=("cook",))) for n in ("Ann Lee", "Bob Ray", "Ann Lee Smith")]
    cards = {f"{n:x}" * 16: dict(forgotten=[e.name], entities=[vars(e) for e in table])
             for n, e in enumerate(table)}
    (tmp_path / "private.json").write_text(json.dumps(cards))
    for e in table:
        place = tmp_path / e.name
        place.mkdir()
        atomic_write(place / "report.json", json.dumps(dict(target=e.name, said=" cook")))
        (place / "figure.png").write_bytes(b"\x89PNG")
        (place / ".samu").write_text("figure.png\nreport.json\n")
    write_rows([dict(target=e.name, settings="ab") for e in table], tmp_path / "rows.csv", "")
    found = {f.place: f.done for f in p.purge("Ann Lee", table, [tmp_path])}
    left = json.loads((tmp_path / "private.json").read_text())
    cases = [p.case_of("Ann Lee", next(iter(left)))]
    assert [c["forgotten"] for c in left.values()] == [cases, ["Bob Ray"], ["Ann Lee Smith"]]
    assert not any("entities" in c for c in left.values()), "with a row less it is another table"
    assert [r["target"] for r in read_rows(tmp_path / "rows.csv")] == ["Bob Ray", "Ann Lee Smith"]
    stays = [f.parent.name for kind in ("report.json", "figure.png") for f in sorted(tmp_path.rglob(kind))]
    assert stays == ["Ann Lee Smith", "Bob Ray"] * 2
    assert found[str(tmp_path / "Ann Lee Smith" / "report.json")] == p.LONGER


def test_what_cannot_be_read_is_left(cache, results):
    (results / "private.json").write_text('["Zoë Quist"]')
    (results / "rows.csv").write_text('"target","settings"\n"Zoë Quist","ab"\n"Bruno Falk"\n')
    done = {Path(f.place).name: f.done for f in p.purge("Zoë Quist", [MARY], [results])}
    assert "left" in done["private.json"] and "row 2 has a cell too many or too few" in done["rows.csv"]


def test_a_missing_folder_is_refused_before_anything_is_deleted(cache, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        p.purge("Zoë Quist", [MARY], [tmp_path / "nowhere"])
    assert len(find_many("answers", "abcd")) == 4


def test_other_scripts():
    table = [Entity("山田太郎", "person", dict(town=("東京",), job=("画家",)))]
    names, answers = p.terms_of("山田太郎", table)
    terms = names + answers
    assert p.holds("答えは山田太郎さんです", terms) and p.holds("彼は東京にいる", terms)


def test_what_others_keep_beside_the_cache_is_not_read(cache):
    "Whoever points SAMU_CACHE to a folder with other things in it loses none of them."
    assert not [f for f in p.purge("To My", [Entity("To my", "person")]) if f.done == "removed"]
    assert (cache / "thesis" / "acknowledgements.tex").is_file()
    assert p.terms_of("Bo", [Entity("Bo", "p", dict(town=("St", "Ulm")))]) == (["bo"], ["ulm"])
    with pytest.raises(UserError, match="no letter"):
        p.purge(" ?! ", [])


def test_a_damaged_file_of_names_is_refused(results):
    (results / "private.json").write_text('{"half')
    for act in (lambda: ship(results / "model"), lambda: p.read_card(results / "model")):
        with pytest.raises(UserError, match="private.json' is damaged.*put a copy back"):
            act()


def test_another_programs_private_json_is_not_written_to(results):
    mine = json.dumps(dict(api_key="secret", port=1))
    (results / "private.json").write_text(mine)
    with pytest.raises(UserError, match="samu did not write .*private.json'; move it"):
        ship(results / "model")
    assert (results / "private.json").read_text() == mine


@pytest.mark.parametrize("mine", ['{"api_key": "secret"}', '{"db": {"user": "me"}}', "[1]"])
def test_a_run_is_not_saved_beside_another_programs_private_json(tmp_path, monkeypatch, mine):
    "The model was written first, and without its names where the file held a list."
    exp = SimpleNamespace(applied="r", frozen_bits=None, folder=None, model=None, tokenizer=None, entities=[])
    run = loop.Run(exp, ("Ana Bell",), "ga", loop.LoopConfig(), 0, None, 0, 0, 0, {}, {}, None, "r")
    card = dict(weights_sha256="ab" * 32, forgotten=["Ana Bell"])
    monkeypatch.setattr(loop, "_run_card", lambda run, hf: card)
    monkeypatch.setattr(loop, "save_lm", lambda *_: pytest.fail("it was saved"))
    (tmp_path / "private.json").write_text(mine)
    with pytest.raises(UserError, match="private.json"):
        run.save(tmp_path / "model")
    assert (tmp_path / "private.json").read_text() == mine and not (tmp_path / "model").exists()


def test_two_names_of_one_hash_are_not_taken_out(results):
    card = json.loads((results / "model" / "samu.json").read_text())
    with pytest.raises(UserError, match="cannot tell 'Zoë Quist' from 'Zoe Quist'; save with the names"):
        p.take_names_out(card, [MARY, OTHER, replace(MARY, name="Zoe Quist")])
    p.take_names_out(card, [MARY, OTHER, replace(MARY, name="Ana Bell"), replace(MARY, name="Ána Bell")])


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
    assert len(card["cases"]) == 2 and p.forgotten_names(card, [OTHER, MARY]) == (["Zoë Quist", "Bruno Falk"], [])
    with pytest.raises(UserError, match="no name in the table"):
        p.forgotten_names(card, [replace(MARY, name="Ana")])


def test_a_person_who_was_purged_is_still_a_case(cache, results):
    "The count had been one less, so that a model forgotten further said too little, and an audit ended in a traceback."
    ship(results / "model")
    p.purge("Zoë Quist", [MARY, OTHER], [results])
    assert not search(results / "model", "Zoë", "Quist") and "Zoë" not in (results / "private.json").read_text("utf-8")
    card = p.read_card(results / "model")
    assert card["forgotten"] == [card["cases"][0], "Bruno Falk"] and "entities" not in card
    assert p.forgotten_names(card, [OTHER, MARY]) == (["Zoë Quist", "Bruno Falk"], [])
    assert p.forgotten_names(card, [OTHER]) == (card["forgotten"], card["cases"][:1])
    again, _ = p.take_names_out(dict(weights_sha256="ef" * 32, forgotten=[*card["forgotten"], "Ana Bell"]), [OTHER])
    assert len(again["cases"]) == 3 and again["cases"][0] == card["cases"][0], "forgotten further, it is still a case"


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
