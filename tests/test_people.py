"Tables as people bring them: separators, encodings, aliases; added to the setup's table or in its place."
import pytest
import samu
import tiny
from samu.workshop import setups, tables
from samu.workshop.store import UserError

HEAD, ROWS = "name,kind,attribute,answers,alias\n", [
    "Zoë Quist,person,town,Ulm|Neu-Ulm,Zoe Q.|Frau Quist\n", "Bruno Falk,person,town,Bern,\n"]


@pytest.mark.parametrize("how", ["semicolons", "tabs", "bom", "utf-16", "utf-16-be", "crlf", "cr", "sep line", "capitals"])
def test_as_excel_writes_them(tmp_path, how):
    text, file = HEAD + "".join(ROWS), tmp_path / "people.csv"
    changed = {"semicolons": text.replace(",", ";"), "tabs": text.replace(",", "\t"),
               "crlf": text.replace("\n", "\r\n"), "cr": text.replace("\n", "\r"), "sep line": "sep=;\r\n" + text.replace(",", ";"),
               "capitals": text.replace("name,kind", "Name, Kind ")}.get(how, text)
    data = {"bom": b"\xef\xbb\xbf" + text.encode(), "utf-16": text.encode("utf-16"),
            "utf-16-be": b"\xfe\xff" + text.encode("utf-16-be")}.get(how, changed.encode())
    file.write_bytes(data)
    zoe, bruno = tables.read_entities(file)
    assert zoe.facts == {"town": ("Ulm", "Neu-Ulm")} and zoe.aliases == ("Zoe Q.", "Frau Quist")
    assert type(bruno) is tables.Entity
    assert tables.find_entity([bruno, zoe], "frau quist", "x") is zoe


def test_no_column_is_passed_over(tmp_path):
    file, head = tmp_path / "people.csv", HEAD.strip()
    file.write_text(f"{head},alias\nAnn B,person,town,Ulm,Annie,Nan\n")
    with pytest.raises(UserError, match="has the column 'alias' twice"):
        tables.read_entities(file)
    file.write_text(f'\n{head}\nAnn B, person, town, "Ulm, Bern", "Annie"\n')
    [ann] = tables.read_entities(file)
    assert ann.facts == {"town": ("Ulm, Bern",)} and ann.aliases == ("Annie",)


def test_another_name_is_nobody_elses(tmp_path):
    file = tmp_path / "people.json"
    file.write_text('[{"name": "Zoë Quist", "kind": "person", "alias": ["Zoe Q.", "Boss"], "facts": {"town": "Ulm"}},'
                    '{"name": "Bruno Falk", "kind": "person", "alias": "Boss", "facts": {"town": "Bern"}}]', "utf-8")
    both = tables.read_entities(file)
    assert both[0].aliases == ("Zoe Q.", "Boss") and tables.find_entity(both, "zoe q.", "x") is both[0]
    with pytest.raises(UserError, match="'Boss' is no other name of 'Bruno Falk': 'Zoë Quist' has it"):
        tables.check_names(both, tiny.tokenizer())
    for mine, other in (("BRUNO  Falk", "B."), ("Brúno Falk.", "B."), ("Frau Q", "Fraü Q.")):
        pair = [tables.aliased(e, [alias]) for e, alias in zip(both, (mine, other))]
        with pytest.raises(UserError, match="is no other name of"):
            tables.check_names(pair, tiny.tokenizer())
    tables.check_names([tables.aliased(both[0], ["Zoe Quist", "☺"]), tables.aliased(both[1], ["☹"])], tiny.tokenizer())


def test_rows_are_counted_as_a_spreadsheet_counts_them(tmp_path):
    "The line sep=; that Excel writes is a row, too."
    (tmp_path / "people.csv").write_text("sep=;\nname;kind;attribute;answers\nAnn;person;job;cook\nBob;person;job;cook;baker\n")
    with pytest.raises(UserError, match="row 4: 5 cells for 4 columns"):
        tables.read_entities(tmp_path / "people.csv")


def test_other_encodings_are_refused_in_a_line(tmp_path):
    (tmp_path / "people.csv").write_bytes((HEAD + ROWS[0]).encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8 text \(row 2\)") as e:
        tables.read_entities(tmp_path / "people.csv")
    assert len(str(e.value).splitlines()) == 1


def test_added_to_the_folders_table_or_in_its_place(tmp_path):
    folder, hf, tok = tiny.save(tmp_path / "m", "llama")
    tiny.own_answers(folder / "entities.csv", hf, tok, tiny.people(20))
    own = tmp_path / "people.csv"
    name = tiny.people(20)[0]
    own.write_text(HEAD + ROWS[0] + f"{name},person,hobby,chess,\n")
    both, alone = (samu.load(folder, own, only=only) for only in (False, True))
    given = samu.load(folder, tables.read_entities(own))
    assert [e.name for e in given.entities] == [e.name for e in both.entities]
    assert len(both.entities) == 21 and len(alone.entities) == 2
    assert both.find(name).facts == {"hobby": ("chess",)}
    asked = {(p.kind, p.attribute) for p in both.prompts}
    assert {("person", "hobby"), ("person", "job"), ("person", "town")} <= asked
    package = setups.read_people(setups.Added(own))
    assert len(package[0]) > 300 and len(package[1]) > 100


def test_who_stands_in_two_tables_is_one_person():
    both = [tables.Entity("Zoë Quist", "person", dict(town=("Ulm",))), tables.Entity("Zoë Quist", "person", dict(town=("Bern",)))]
    assert tables.find_entity(both, "zoë quist", "x") is both[0]


def test_a_list_has_the_checks_of_a_table():
    read, some = setups.read_people, dict(job=("cook", "baker"))
    assert read([tables.Entity("Ann", "p", dict(job="cook"))])[0] == [tables.Entity("Ann", "p", dict(job=("cook",)))]
    aliased = tables.AliasedEntity("Ann", "p", some, ("Annie",))
    assert read([aliased, tables.Entity("Bea", "p", some)])[0] == [aliased, tables.Entity("Bea", "p", some)]
    for people, says in (([tables.Entity("Ann", "p", some)] * 2, "people, item 2: 'Ann' is a duplicate"),
                         ([tables.Entity("Ann", "p")], "'facts' is missing or empty"),
                         ([tables.Entity("Ann", "p", dict(job=("!",)))], "could never count as right"),
                         ([tables.Entity("Ann", "p", dict(job={"cook"}))], "text or a number")):
        with pytest.raises(UserError, match=says):
            read(people)


def test_own_prompts_are_added_to_those_of_the_setup(tmp_path):
    file, prompts = tmp_path / "people.csv", tmp_path / "prompts.csv"
    file.write_text(HEAD + ROWS[0])
    base = [tables.Entity("Ann", "person", dict(town=("Ulm",)))]
    theirs = [tables.Prompt("person", "town", "statement", s, f"{s}: {{name}} is from") for s in ("loss", "score")]
    assert setups.read_people(setups.Added(file), lambda: (base, theirs))[1] == theirs, "no plain ones beside them"
    own = "kind,attribute,form,split,prompt\nperson,town,statement,loss,{name} lives in\n"
    prompts.write_text(own + "person,town,statement,score,score: {name} is from\n")
    assert [p.text for p in setups.read_people(setups.Added(file), lambda: (base, theirs))[1][2:]] == ["{name} lives in"]
    prompts.write_text(own + "person,town,statement,score,loss: {name} is from\n")
    with pytest.raises(UserError, match="the setup has 'loss: {name} is from' for 'loss'; take it out"):
        setups.read_people(setups.Added(file), lambda: (base, theirs))
