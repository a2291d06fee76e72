"""A real model, Gemma 3 270M, is made to forget Michael Jordan: small table, small dictionary, the setup's own training. A few minutes.

Nothing here is skipped. Where the package with the model's weights is missing, the tests fail and say what to install.
"""
import csv, importlib.util, json

import pytest

TARGET = "Michael Jordan"
ATTRIBUTES = {"athlete": ("sport", "nationality"), "city": ("country", "continent")}
SIZES = {"athlete": 18, "city": 12}

def write_table(path):
    "The first athletes and cities of the package's table, and the target, with the attributes above."
    from samu.entities import COLUMNS, real_entities
    everyone = real_entities()
    chosen = [e for kind, n in SIZES.items() for e in [e for e in everyone if e.kind == kind][:n]]
    if TARGET not in {e.name for e in chosen}: chosen.append(next(e for e in everyone if e.name == TARGET))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows([e.name, e.kind, a, "|".join(e.facts[a])] for e in chosen for a in ATTRIBUTES[e.kind])
    return path

@pytest.fixture(scope="module")
def jordan(tmp_path_factory):
    "Everything from the table to the saved model, once: (setup, objective, report rows, runs, folder of the model)."
    from samu.models import GEMMA3_PACKAGE, gemma3_folder, load_gemma3
    if importlib.util.find_spec(GEMMA3_PACKAGE) is None:
        pytest.fail(f'Gemma 3 270M is not installed (no module {GEMMA3_PACKAGE}): run pip install "samu[gemma3]"; `make test` does so', pytrace=False)
    from samu.entities import read_entities, real_prompts
    from samu.evaluation import compare
    from samu.latents import find_latents, grade
    from samu.saes import sae_for
    from samu.unlearning import save_model
    folder = tmp_path_factory.mktemp("jordan")
    gemma3_folder()                                        # converted here, unless the cache has it
    entities = read_entities(write_table(folder / "entities.csv"))
    prompts = [p for p in real_prompts() if p.attribute in ATTRIBUTES.get(p.kind, ())]
    setup = load_gemma3(entities=entities, prompts=prompts)
    grades = grade(setup)
    sae = sae_for(setup, d_sae=1024, k=32, samples=40_000, texts=1500)
    latents = find_latents(setup, sae, grades, min_group=5)
    rows, runs, _, _ = compare(setup, sae, latents, TARGET, [setup.objective], grades, keep=setup.objective)
    return setup, setup.objective, {r["method"]: r for r in rows}, runs, save_model(setup, runs[setup.objective], folder / "model")

def test_model_is_the_packages_own(jordan):
    from importlib import import_module
    from samu.models import GEMMA3_PACKAGE, gemma3_folder
    source = json.loads((gemma3_folder() / "source.json").read_text(encoding="utf-8"))
    assert source["sha256"] == import_module(GEMMA3_PACKAGE).EXPECTED_SHA256
    assert jordan[0].model.cfg.n_layers == 18 and jordan[0].model.cfg.d_model == 640

def test_target_is_forgotten(jordan):
    from samu.models import GEMMA3_TRAINING
    _, objective, rows, runs, _ = jordan
    assert runs[objective].settings["steps_taken"] <= GEMMA3_TRAINING["steps"]
    assert rows["original"]["target_recall_corrected"] > 0, "the model never knew the target"
    assert rows[objective]["target_recall_corrected"] <= 0.5 * rows["original"]["target_recall_corrected"]

def test_others_are_not(jordan):
    _, objective, rows, _, _ = jordan
    assert rows["original"]["retain_recall"] > 0
    assert rows[objective]["retain_recall"] >= 0.8 * rows["original"]["retain_recall"]
    assert rows[objective]["perplexity_ratio"] <= 1.2

def test_saved_model_gives_the_same_logits(jordan):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from samu.entities import questions
    from samu.models import unwrap
    setup, objective, _, _, folder = jordan
    card = json.loads((folder / "samu.json").read_text(encoding="utf-8"))
    assert card["forgotten"] == [TARGET] and card["method"] == objective and card["base_setup"] == "gemma-3-270m"
    assert card["weights_sha256"] != card["original_sha256"]
    tokenizer, in_memory = AutoTokenizer.from_pretrained(folder, local_files_only=True), unwrap(setup.model)
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=setup.dtype, local_files_only=True).eval()
    for a, b in zip(saved.parameters(), in_memory.parameters(), strict=True): assert torch.equal(a, b)
    for m in (saved, in_memory): m.set_attn_implementation("eager")   # like with like: the wrapped model was built with it
    for q in questions([setup.find(TARGET)], setup.prompts)[:2]:
        ids = torch.tensor([tokenizer(q.text)["input_ids"]])
        with torch.no_grad(): assert torch.equal(saved(ids).logits, in_memory(ids).logits)
