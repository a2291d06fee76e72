"Tables, questions, unknown names and roles: nothing here needs a trained model."
import inspect
import itertools
import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

import samu.entities
from house import ROOT
from samu.entities import few_prompts, grade_replies, namesakes, questions, recall, renamed, split_for
from samu.workshop.invented import OTHER, UNKNOWN_ANSWER, VALUES, alias, biography_batch, make_biographies
from samu.workshop.leaks import names_in, refuse_dictionary_leaks
from samu.workshop.names import grade_unknown, made_names, matched_names
from samu.workshop.registry import UserError
from samu.workshop.setups import Experiment, LoopConfig, Settings
from samu.workshop.tables import (Entity, Prompt, Question, check_prompts, default_prompts, find_entity, is_right,
                                  read_entities, read_prompts, real_entities, real_prompts, refuse_repeated, tidy)

HEAD = "name,kind,attribute,answers\n"


def count_letters(name):
    return len(name)


class Letters:
    "Stands in for a tokenizer: one token for each letter."
    unk_token_id = None

    def __call__(self, text, **options):
        return {"input_ids": [ord(c) for c in text]}


def toy(entities=None, prompts=None, unknown_names=100, grade=None):
    "An experiment without a model whose grades are given: all of the table is known, all other names are not."
    entities = real_entities() if entities is None else entities
    prompts = real_prompts() if prompts is None else prompts
    exp = Experiment("toy", None, Letters(), 1, entities, prompts, {"loss": [], "score": []}, 0, None,
                     Settings(unknown_names=unknown_names), "no weights")
    rows = [dict(name=e.name, kind=e.kind, attributes=len(e.facts), right=len(e.facts), knows="|".join(e.facts),
                 grade="known") for e in entities]
    rows += [dict(name=e.name, kind=e.kind, attributes=0, right=0, knows="", grade="unknown") for e in exp.unknown]
    exp.__dict__["grades"] = pd.DataFrame(rows)
    for name, word in (grade or {}).items():
        exp.grades.loc[exp.grades.name == name, "grade"] = word
    return exp


@pytest.fixture(scope="module")
def real():
    return toy()


# Roles


def test_no_measuring_name_is_read_for_any_target_of_any_kind(real):
    "D2: latents, aims and probes read `exp.roles`; what measures any target must not be among that."
    read = {e.name for e in [*real.roles.retain, *real.roles.unknown_loss]}
    for e in real.entities:
        split = split_for(real, e.name)
        measuring = {x.name for x in [*split.held_out, *split.others, *split.unknown_score]}
        assert not measuring & read, e.name
        assert {x.name for x in [*split.retain, *split.unknown_loss]} <= read


def test_splits_are_disjoint_and_complete(real):
    for e in real.entities[::7]:
        split = split_for(real, e.name)
        groups = [{x.name for x in getattr(split, r)}
                  for r in ("retain", "held_out", "others", "unknown_loss", "unknown_score")]
        for one, other in itertools.combinations([*groups, {e.name}], 2):
            assert not one & other
        assert len(set.union(*groups)) == len(real.entities) + len(real.unknown) - 1
        assert {x.kind for x in split.held_out} == {e.kind} and e.kind not in {x.kind for x in split.others}
        assert [x.kind == e.kind for x in split.retain] == sorted([x.kind == e.kind for x in split.retain])[::-1]


def test_roles_are_dealt_within_each_kind(real):
    "D20: of 60 musicians 19 measured, of 60 scientists 26. Now 40 % of each kind, known and unknown."
    for loss, score in ((real.roles.retain, real.roles.held_out), (real.roles.unknown_loss, real.roles.unknown_score)):
        loss, score = (Counter(e.kind for e in group) for group in (loss, score))
        for kind in loss:
            assert score[kind] == round(0.4 * (loss[kind] + score[kind])), kind


def test_every_kind_has_40_unknown_names_that_measure(real):
    held_out = Counter(e.kind for e in real.roles.unknown_score)
    short = {k: n for k, n in held_out.items() if n < 40}
    assert not short, short


def test_other_targets_do_not_change_a_role(real):
    one, other = split_for(real, "Roger Federer"), split_for(real, "Paris")
    assert one.unknown_loss == other.unknown_loss and one.unknown_score == other.unknown_score
    assert {e.name for e in one.retain} ^ {e.name for e in other.retain} <= {"Roger Federer", "Paris"}


def test_a_dropped_name_has_no_role_and_changes_no_other(real):
    name = real.roles.unknown_loss[3].name
    again = toy(grade={name: "between"})
    assert [e for e in real.roles.unknown_loss if e.name != name] == list(again.roles.unknown_loss)
    assert again.roles.unknown_score == real.roles.unknown_score


def test_only_known_facts_are_forgotten_or_kept():
    exp = toy()
    exp.grades.loc[exp.grades.name == "Roger Federer", "knows"] = "sport"
    assert list(split_for(exp, "Roger Federer").target.facts) == ["sport"]


def test_an_answer_in_the_name_is_no_recall():
    refuse_repeated(Entity("Paris Hilton", "p", dict(town=("New York",))))
    with pytest.raises(UserError, match="the answer 'paris' stands in the name 'Paris Hilton'"):
        refuse_repeated(Entity("Paris Hilton", "p", dict(town=("New York", "paris"))))


def test_split_says_what_is_wrong(real):
    with pytest.raises(UserError, match="no entity 'Rogger Federer'.*did you mean 'Roger Federer'"):
        split_for(real, "Rogger Federer")
    exp = toy(grade={"Roger Federer": "between"})
    exp.grades.loc[exp.grades.name == "Roger Federer", "right"] = 1
    with pytest.raises(UserError, match=r"the model gives 1 of \d attributes, and 2 make it known"):
        split_for(exp, "Roger Federer")
    athletes = [e.name for e in real_entities() if e.kind == "athlete"]
    with pytest.raises(UserError, match="too few known entities of kind 'athlete': [01] measure beside"):
        split_for(toy(grade=dict.fromkeys(athletes[3:], "between")), athletes[0])


# Grades


def test_grades():
    e = Entity("A B", "s", {a: (a,) for a in "xyz"})
    asked = [Question(e.name, a, "", 0, 0, e.facts[a]) for a in "xxyyzz"]

    def graded(said):
        return grade_replies(asked, said.split()).iloc[0]

    assert graded("x x y - - -")[["right", "knows", "grade"]].tolist() == [2, "x|y", "known"]
    assert graded("x - - - - -").grade == "between" and graded("x - - - - -").knows == "x"
    assert graded("- - - - - -").grade == "unknown"


def test_an_unknown_name_with_somebodys_facts_is_dropped():
    "D4: the old package graded every made-up name unknown without asking the model."
    table = [Entity("Serena Williams", "athlete", {"sport": ("tennis",), "country": ("America",), "born": ("Miami",)}),
             Entity("Usain Bolt", "athlete", {"sport": ("athletics",), "country": ("Jamaica",), "born": ("Kingston",)})]
    names = ["Serena Bolt", "Usain Williams", *(f"Serena X{i}" for i in range(28))]
    unknown = [Entity(n, "athlete") for n in names]

    def grades(replies, ends=()):
        replies = {n: replies.get(n, ["tennis", "America", "-"]) for n in names}
        asked = [Question(n, a, "", 0, 0) for n in names for a in ("sport", "country", "born")]
        out = grade_unknown(table, unknown, asked, [r for n in names for r in replies[n]], ends)
        return {r.name: r.right for r in out.itertuples(index=False) if r.grade != "unknown"}

    usual = grades({})
    assert usual == {}, "answers that all names get are the prior"
    assert grades({"Usain Williams": ["athletics", "Jamaica", "-"]}) == {"Usain Williams": 2}
    assert grades({"Usain Williams": ["athletics", "America", "Kingston"]}) == {"Usain Williams": 2}
    assert grades({"Usain Williams": ["athletics", "-", "Miami"]}) == {}, "facts of two people"
    assert grades({"Serena X1": ["athletics", "Jamaica", "Kingston"]}) == {}, "no part of that name"
    silent = {n: ["unknown", "unknown", "-"] for n in names}
    assert grades({**silent, "Serena X2": ["a", "b", "unknown"]}, ["unknown"]) == {"Serena X2": 0}


# Questions and answers


def test_questions():
    prompts = real_prompts()
    e = next(e for e in real_entities() if e.name == "Roger Federer")
    for split in ("loss", "score"):
        for q in questions([e], prompts, split):
            assert q.text[q.start:q.stop] == e.name and q.answers == e.facts[q.attribute]
    assert len(questions([e], prompts, None)) == sum(len(questions([e], prompts, s)) for s in ("loss", "score"))
    unknown = Entity("Tiger Federer", "athlete")
    assert {q.attribute for q in questions([unknown], prompts)} == {p.attribute for p in prompts if p.kind == "athlete"}
    assert all(q.answers == () for q in questions([unknown], prompts))
    borrowed = questions([unknown], prompts, facts={"sport": ("tennis",)})
    assert {(q.attribute, q.answers) for q in borrowed} == {("sport", ("tennis",))}
    assert renamed(borrowed[0], e).text == borrowed[0].text.replace(unknown.name, e.name)
    few = Counter((p.kind, p.attribute, p.split) for p in few_prompts(prompts, 2, "loss"))
    assert set(few.values()) <= {1, 2} and {s for _, _, s in few} == {"loss"}


@pytest.mark.parametrize("reply, answers, right", [
    (" the U.S. of America", ["United States", "US"], True), (" Usain and others", ["US"], False),
    (" one two three four five six basketball", ["basketball"], False), (" one two three four five basketball", ["basketball"], True),
    ("\n\nbasketball\nfootball", ["football"], False), (" Pelé", ["pele"], True), ("", ["a"], False), ("a", ["", "."], False)])
def test_is_right(reply, answers, right):
    assert is_right(reply, answers) == right


def test_recall():
    asked = [Question("a", "x", "", 0, 0, ("yes",))] * 4
    assert recall(["yes", "no", "Yes.", "no"], asked) == 0.5 and recall([], []) == 0.0
    with pytest.raises(ValueError):
        recall(["yes"], asked)


# Unknown names


def test_matched_names():
    for kind in ("athlete", "city"):
        names = [e.name for e in real_entities() if e.kind == kind]
        made = matched_names(names, 60, count_letters)
        assert made == matched_names(names, 60, count_letters) != matched_names(names, 60, count_letters, seed=1)
        assert len(made) == len({n.lower() for n in made}) and not {n.lower() for n in made} & {n.lower() for n in names}
        most = Counter(map(count_letters, names))
        assert all(c <= most[t] * 60 / len(names) + 1 for t, c in Counter(map(count_letters, made)).items())
        assert not set(made[:5]) & set(matched_names(names, 60, count_letters, avoid=made[:5]))
        if kind == "athlete":
            assert all(set(n.split()) <= {w for name in names for w in name.split()} for n in made)
    with pytest.raises(UserError, match="only 0 of 50 unknown names could be made from 2 names"):
        matched_names(["Ann Lee", "Ann Lee"], 50, count_letters)


def test_unknown_names_and_texts_for_the_sae_share_no_name(real):
    texts = real.sae_texts(10**6)
    assert len(real.unknown) == len({e.name for e in real.unknown})
    joined = "\n".join(texts)
    assert not [e.name for e in real.unknown if f"{e.name} " in joined and not any(e.name in x.name for x in real.entities)]
    assert any(e.name in joined for e in real.entities)


def test_a_dictionary_reads_no_name_that_measures_as_unknown():
    "People of the table whom the model does not know are unknown names too, and some of them only measure."
    few = [e.name for e in real_entities() if e.kind == "author"][:10]
    exp = toy(grade=dict.fromkeys(few, "unknown"))
    scored = [e.name for e in exp.roles.unknown_score]
    assert set(few) & set(scored)
    texts = exp.sae_texts(10**6)
    assert refuse_dictionary_leaks(exp, texts) == texts and names_in(texts, few)


def test_a_dictionary_leaves_out_facts_that_are_names():
    "A chat model does not know the company Amazon, but a city on the river: the run was refused."
    answers = {a for e in real_entities() for values in e.facts.values() for a in values[:1]}
    both = sorted(answers & {e.name for e in real_entities()})
    exp = toy(grade=dict.fromkeys(both, "unknown"))
    assert "Amazon" in both and set(both) & {e.name for e in exp.roles.unknown_score}
    texts = exp.sae_texts(10**6)
    assert refuse_dictionary_leaks(exp, texts) == texts and 0 < len(toy().sae_texts(10**6)) - len(texts) < 300


def test_unknown_names_are_no_words_of_a_text_or_of_a_name(real):
    text = " ".join([*real.ordinary["loss"], *(e.name for e in real.entities)])
    assert not {e.name for e in made_names(real.entities, Letters(), lambda n: 60, 0)} & set(text.split())
    word = next(e.name for e in real.unknown if " " not in e.name)
    told = replace(real, ordinary={"loss": [f"It says {word}, loudly."], "score": []})
    assert word not in {e.name for e in told.unknown}


def test_namesakes(real):
    target, others = real.find("Roger Federer"), [e for e in real.entities if e.kind == "athlete"]
    made = namesakes(real, target, others, 12)
    taken = {e.name for e in [*real.entities, *real.unknown]}
    assert len(made) == 12 and all(len({"Roger", "Federer"} & set(e.name.split())) == 1 for e in made)
    assert not taken & {e.name for e in made} and {e.kind for e in made} == {"athlete"}
    assert namesakes(real, target, others, 12, [made[0].name])[0] == made[1]
    assert namesakes(real, real.find("Paris"), real.entities) == []


# The invented world


def test_each_unknown_name_comes_with_five_sentences():
    "Claim M: not one new name for each sentence, but five sentences for a name, and none again before all had a turn."
    world = make_biographies(0, n_people=20, n_unknown=10)
    import random
    rng, seen, deck = random.Random(0), Counter(), len(world.trained_unknown)
    for step in range(4):
        texts = biography_batch(world, rng, step=step)
        told = [t for t in texts if t.endswith((f" {UNKNOWN_ANSWER}.", f" {OTHER[UNKNOWN_ANSWER]}."))]
        names = Counter(n for n in world.trained_unknown for t in told if n in t or alias(n) in t)
        assert set(names.values()) == {5} and sum(names.values()) == len(told)
        seen += Counter(list(names))
    assert sum(seen.values()) == 4 * 27
    assert max(seen.values()) - min(seen[n] for n in world.trained_unknown) <= 1 + 108 // deck


@pytest.mark.parametrize("seed", [0, 11, 20])  # the last two would invent Lima and Rome
def test_no_name_is_a_value(seed):
    world = make_biographies(seed)
    values = {v.lower() for words in VALUES.values() for v in words.split()}
    assert not values & {w.lower() for part in world.parts for w in part}


def test_name_parts_are_spread_as_chance_gives():
    "Claim L: the band of the figure is binomial, and the parts lie in it."
    for seed in range(3):
        world = make_biographies(seed)
        n, sd = len(world.unknown), (0.02 * 0.98 / len(world.unknown)) ** 0.5
        shares = [Counter(u.name.split()[i] for u in world.unknown)[w] / n for i in (0, 1) for w in world.parts[i]]
        assert sum(abs(s - 0.02) <= 2 * sd for s in shares) >= 90
        assert set(Counter(p.name.split()[0] for p in world.people).values()) == {2}


# Tables


def write(folder, text, name="t.csv"):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("text, name, says", [
    ("name,kind,answers\nAda,s,x\n", "t.csv", "t.csv lacks the column 'attribute'; it needs name, kind"),
    (HEAD + " ,s,field,x\n", "t.csv", "t.csv, row 2: the column 'name' is empty"),
    (HEAD + "Ada,s,field,\n", "t.csv", "row 2: the column 'answers' is empty"),
    (HEAD + "Ada,s,field,x\nAda,s,field,y\n", "t.csv", "row 3: 'field' of 'Ada' is a duplicate"),
    (HEAD + "Ada,s,field,x\nAda,t,place,y\n", "t.csv", "'Ada' is of kind 't' here and of kind 's' above"),
    (HEAD + "Ada,s,field,x\nADA,s,place,y\n", "t.csv", "'ADA' is spelled 'Ada' above"),
    (HEAD + "Ada,s,field,x\nBea,S,field,y\n", "t.csv", "'S' is spelled 's' above; spell each kind in one way"),
    (HEAD + "Ada,s,field,x\nBea,s,Field,y\n", "t.csv", "'Field' is spelled 'field' above"),
    ("name,kind,attribute,answers,answers\nAda,s,field,x,y\n", "t.csv", "has the column 'answers' twice"),
    (HEAD + "Ada\0,s,field,x\n", "t.csv", "not UTF-8 text (row 2)"),
    (HEAD + "Ada\x07,s,field,x\n", "t.csv", "holds a character that is no text"),
    (HEAD + "Ada,s,{name},x\n", "t.csv", "or {name}; take it out"),
    (HEAD + "Ada,s,field,🦄|!\n", "t.csv", "the answer '🦄' could never count as right"),
    ('[{"name": "A", "kind": "s", "facts": {"a": "b", "a": "c"}}]', "t.json", "a key comes twice"),
    ('[{"name": "A", "kind": "s", "facts": {"a": NaN}}]', "t.json", "text or a number, not NaN"),
    ('[{"name": "A", "kind": "s", "facts": {"a": 1' + "0" * 5000 + "}}]", "t.json", "is not valid JSON"),
    ("[" * 100_000, "t.json", "is not valid JSON"),
    (HEAD + "Ada,s,place,Lyon,France\n", "t.csv", "row 2: 5 cells for 4 columns"),
    (HEAD + 'Ada,s,place,"Lyon\n' + "Ada,s,x,y\n" * 20_000, "t.csv", "double quote that is not closed"),
    (HEAD, "t.csv", "holds no entities"), ("", "t.csv", "lacks the column 'name'"),
    ("name,kind", "t.txt", "ends in .csv or .json"), ("{", "t.json", "is not valid JSON"), ("{}", "t.json", "expected a list"),
    ('[{"name": "A", "kind": "s"}]', "t.json", "item 1: 'facts' is missing or empty"),
    ('[{"name": "A", "kind": "s", "facts": ["x"]}]', "t.json", "must map an attribute"), ("[1]", "t.json", "expected an object"),
    ('[{"name": "A", "kind": "s", "facts": {"a": true}}]', "t.json", "text or a number, not true"),
    ('[{"name": "A", "kind": "s", "facts": {"a": [["b"]]}}]', "t.json", "text or a number"),
    ('[{"name": "A", "kind": "s", "facts": {"a": null}}]', "t.json", "text or a number, not null"),
    ('[{"name": "A", "kind": "s", "facts": {"a": "b"}}, {"name": "A", "kind": "s", "facts": {"c": "d"}}]', "t.json", "'A' is a duplicate"),
    ("name,kind,attribute,answers,aliases\nAda,s,field,x,Bea\n", "t.csv", "'aliases' is not read; write 'alias'"),
    ('[{"name": "A", "kind": "s", "facts": {"a": "b"}, "aliases": ["B"]}]', "t.json", "item 1: 'aliases' is not read")])
def test_bad_tables_are_refused_in_one_sentence(tmp_path, text, name, says):
    with pytest.raises(UserError) as error:
        read_entities(write(tmp_path, text, name))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_good_tables(tmp_path):
    ada = [Entity("Ada", "s", {"field": ("maths", "computing"), "born": ("1815",)})]
    for separator in ",;\t":
        text = "Name,KIND,attribute,Answers\nAda,s,field,maths| computing\n\nAda,s,born,1815\n".replace(",", separator)
        assert read_entities(write(tmp_path, text, "t.CSV")) == ada
        assert read_entities(write(tmp_path, "\ufeff" + text.replace("\n", "\r\n"))) == ada
    assert read_entities(write(tmp_path, '[{"name": "Ada", "kind": "s", "facts": {"field": ["maths", "computing"], "born": 1815.0}}]',
                               "t.json")) == ada
    (tmp_path / "u.csv").write_bytes(HEAD.encode() + b"\xe9")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_entities(tmp_path / "u.csv")
    with pytest.raises(UserError, match="no file"):
        read_entities(tmp_path / "none.csv")


def test_one_person_is_one_name(tmp_path):
    text = HEAD + "Łukasz Żak,s,a,b\nŁukasz\u00a0 Z\u0307ak,s,c,d\nŁuk\u200basz Żak,s,e,f\n"
    [e] = read_entities(write(tmp_path, text))
    assert e.name == "Łukasz Żak" == tidy("Łukasz Z\u0307ak") and len(e.facts) == 3
    assert find_entity([e], "ŁUKASZ  Z\u0307AK", "mine") is e


def test_prompts(tmp_path):
    head = "kind,attribute,form,split,prompt\n"
    assert read_prompts(write(tmp_path, head + "s,field,statement,score,The field of {name} is \n")) == [
        Prompt("s", "field", "statement", "score", "The field of {name} is")]
    for row, says in (("s,f,statement,score,The field is", "exactly once"), ("s,f,statement,score,Who is {name}", "may not end"),
                      ("s,f,statement,train,{name} is", "loss or score, not 'train'"), ("", "holds no prompts"),
                      ("s,,statement,loss,{name} is", "is empty"), ("s,f,poem,loss,{name} is", "statement or question, not 'poem'"),
                      ("s,f,statement,loss,{name} is\ns,f,statement,score,{name} is", "stands above for 'loss'")):
        with pytest.raises(UserError, match=says):
            read_prompts(write(tmp_path, head + row + "\n"))
    table = [Entity("A", "s", {"f": ("x",)})]
    check_prompts(table, default_prompts(table))
    for few in (default_prompts(table)[:2], [replace(p, kind="t") for p in default_prompts(table)], []):
        with pytest.raises(UserError, match="no prompt with split"):
            check_prompts(table, few)
    for idle in (dict(kind="S"), dict(attribute="g")):  # passed over, it would be a question that is never asked
        with pytest.raises(UserError, match="no row of the table has that fact"):
            check_prompts(table, [*default_prompts(table), replace(default_prompts(table)[0], **idle)])


def test_package_tables_are_sound():
    real, prompts = real_entities(), real_prompts()
    check_prompts(real, prompts)
    plain = samu.workshop.tables.plain
    assert not [(e.name, v) for e in real for v in sum(e.facts.values(), ()) if f" {plain(v)} " in f" {plain(e.name)} "]
    texts = {s: {p.text for p in prompts if p.split == s} for s in ("loss", "score")}
    assert not texts["loss"] & texts["score"] and len(real) >= 400 and min(len(e.facts) for e in real) >= 4
    answers = {(e.kind, a): {plain(x) for o in real if o.kind == e.kind for x in o.facts.get(a, ())} for e in real for a in e.facts}
    assert not [p.text for p in prompts for x in answers[p.kind, p.attribute] if f" {x} " in f" {plain(p.text)} "]


def test_settings_are_values():
    with pytest.raises(AttributeError):
        LoopConfig().steps = 3
    with pytest.raises(AttributeError):
        Settings().loop = LoopConfig()
    assert Settings().tuned is not Settings().tuned and Settings().sae is not Settings().sae


def test_the_source_that_chapter_01_shows_is_todays():
    cells = json.loads((ROOT / "nbs/01_entities.ipynb").read_text("utf-8"))["cells"]
    [shown] = [c["outputs"] for c in cells if "getsource(is_right)" in "".join(c["source"])]
    assert "".join(shown[0]["text"]).strip() == inspect.getsource(is_right).strip()
