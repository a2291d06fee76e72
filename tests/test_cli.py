"""The command line, run as a user runs it: one process for each command, in a folder of its own.

What a command leaves behind is kept for the tests after it, so that each expensive command runs once. Cheap ones come first.
"""
import csv, hashlib, json, os, subprocess, sys
from pathlib import Path

import pytest

from samu.entities import make_biographies

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(sys.executable).with_name("samu")
SAMU = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-c", "from samu.cli import main; main()"]
COMMANDS = ["demo", "setups", "entities", "unlearn", "compare", "audit", "latents", "ask"]
TARGET, SECOND, OTHER = (make_biographies(0).people[i] for i in (7, 20, 3))   # the demo forgets the first of them
DIFFER = {"seconds", "step_ms", "peak_mb"}                                    # what may change from run to run
ASKED = "Question: From which town does {} come? Answer:"

def run(command, cwd):
    "Runs a command in a folder."
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])), "TQDM_DISABLE": "1",
           "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "NO_COLOR": "1"}
    env.pop("SAMU_DEVICE", None)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", timeout=1200)

@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    "Where all commands run."
    return tmp_path_factory.mktemp("cli")

@pytest.fixture(scope="session")
def samu(folder):
    "Runs `samu` with some arguments; each command line once."
    done = {}
    def run_once(*args):
        args = tuple(map(str, args))
        if args not in done: done[args] = run([*SAMU, *args], folder)
        return done[args]
    return run_once

def good(done):
    "What a command printed; it has to have succeeded without a word of complaint."
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "Error" not in done.stderr and "Warning" not in done.stderr
    return done.stdout

def complaint(done, *parts):
    "Checks that a command failed with exit code 2 and one line, in which these parts stand."
    assert done.returncode == 2, (done.stdout + done.stderr)[-3000:]
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("samu: "), done.stderr[-3000:]
    for part in parts: assert part in lines[0]
    assert not done.stdout

def contents(folder):
    "{path: digest} of everything below a folder."
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None for p in sorted(Path(folder).rglob("*"))}


# --- Cheap commands

def test_help(samu):
    out = good(samu("--help"))
    listed = [line.split()[1] for line in out[out.index("Commands"):].splitlines()[1:] if len(line.split()) > 2 and line[2:3].strip()]
    assert listed == COMMANDS

def test_help_does_not_import_torch(folder):
    code = "import sys; sys.argv = ['samu', '--help']\nfrom samu.cli import main\ntry: main()\nexcept SystemExit: pass\n" \
           "loaded = {'torch', 'transformers', 'transformer_lens', 'sae_lens', 'pandas', 'matplotlib'} & set(sys.modules); assert not loaded, loaded"
    assert "Commands" in good(run([sys.executable, "-c", code], folder))

def test_nonsense_grade(samu): complaint(samu("entities", "--grade", "nonsense"), "--grade", "'nonsense'", "known")

def test_no_steps(samu, folder):
    done = samu("unlearn", TARGET.name, "--steps", 0, "--out", "zero")
    assert done.returncode == 2 and "Usage" in done.stderr and "--steps" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "zero").exists()

def test_out_that_cannot_be_written(samu, folder):
    (folder / "file").write_text("mine")
    complaint(samu("unlearn", TARGET.name, "--out", "file/results"), "file/results", "--out")
    assert (folder / "file").read_text() == "mine"

def test_ask_nothing(samu, folder):
    (folder / "any_model").mkdir(exist_ok=True)
    (folder / "any_model" / "config.json").write_text("{}")
    complaint(samu("ask", " ", "--model", "any_model"), "question is empty")

def test_ask_no_model(samu, folder):
    (folder / "no_model").mkdir(exist_ok=True)
    complaint(samu("ask", "The life of", "--model", "no_model"), "no_model", "config.json")

def test_compare_seeds_that_are_no_numbers(samu, folder):
    complaint(samu("compare", TARGET.name, "--seeds", "0,one", "--out", "seeds"), "--seeds", "'0,one'", "0,1,2")
    assert not (folder / "seeds").exists()

def test_audit_no_model(samu, folder):
    (folder / "no_model").mkdir(exist_ok=True)
    complaint(samu("audit", "no_model", "--out", "page"), "no_model", "samu.json")
    assert not (folder / "page").exists()

def test_setups(samu):
    out = good(samu("setups"))
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.split("│") for line in out.splitlines()) if len(cells) > 3}
    assert [name for name in rows if name] == ["biographies", "gemma-3-270m"]      # a row without a name goes on with the one above
    assert rows["biographies"][1].strip() in ("prepared", "trained", "ready to train")
    assert "samu[gemma3]" in rows["gemma-3-270m"][0] and rows["gemma-3-270m"][1].strip() in ("prepared", "converted", "ready to convert", "not installed")

def test_entities_as_names(samu):
    "Also trains and grades the model where the cache is empty, for all that follows."
    names = good(samu("entities", "--grade", "known", "--names")).splitlines()
    people = [e.name for e in make_biographies(0).people]
    assert set(names) <= set(people) and len(names) >= 95
    assert {TARGET.name, SECOND.name, OTHER.name} <= set(names)

def test_entities_as_table(samu):
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in good(samu("entities")).splitlines() if line.startswith("│")]
    world = make_biographies(0)
    assert [r[0] for r in rows] == [e.name for e in [*world.people, *world.unknown]]
    assert [TARGET.name, "person", "5", "5", "known"] in rows
    assert {tuple(r[1:]) for r in rows[len(world.people):]} == {("person", "0", "0", "unknown")}

def test_latents(samu):
    out = good(samu("latents"))
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert "ordinary" in out and "score" in out
    marks = [r[1] for r in rows]
    assert marks == sorted(marks) and min(marks.count("known"), marks.count("unknown")) >= 4 and set(marks) == {"known", "unknown"}
    assert len({r[0] for r in rows}) == len(rows)                                     # no latent twice
    best = [next(r for r in rows if r[1] == mark) for mark in ("known", "unknown")]
    assert float(best[0][2]) > 0 > float(best[1][2])


# --- Forgetting one person

@pytest.fixture(scope="session")
def first(samu, folder):
    "The results of forgetting the target."
    good(samu("unlearn", TARGET.name, "--out", "first"))
    return folder / "first"

@pytest.fixture(scope="session")
def original():
    "The model before."
    from samu.models import load_setup, unwrap
    return unwrap(load_setup("biographies", device="cpu").model)

def without(report, fields=DIFFER): return {**report, "rows": [{k: v for k, v in r.items() if k not in fields} for r in report["rows"]]}
def read(path): return json.loads(Path(path).read_text(encoding="utf-8"))

def logits(model, tokenizer_folder):
    "Of the scoring questions about the target."
    import torch
    from transformers import AutoTokenizer
    from samu.entities import biography_prompts, questions
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    with torch.no_grad(): return torch.cat([model(torch.tensor([tokenizer(q.text)["input_ids"]])).logits[0, -1:] for q in questions([TARGET], biography_prompts())])

def load(folder):
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()

def test_what_is_written(samu, first):
    assert sorted(p.name for p in first.iterdir()) == ["figure.png", "model", "report.csv", "report.json"]
    out = good(samu("unlearn", TARGET.name, "--out", "first"))
    assert "written to first" in out and TARGET.facts["birthplace"][0] in out and "…" not in out      # nothing is cut off

def test_report(first):
    import samu
    from samu.models import versions
    report = read(first / "report.json")
    assert list(report) == ["samu_version", "setup", "target", "seed", "versions", "rows"]
    assert (report["samu_version"], report["setup"], report["target"], report["seed"]) == (samu.__version__, "biographies", TARGET.name, 0)
    assert report["versions"] == versions()
    original, row = report["rows"]
    assert (original["method"], row["method"]) == ("original", "triplet") and list(original) == list(row)
    assert original["target_recall"] >= 0.9 and original["retain_ratio"] == original["perplexity_ratio"] == 1 and original["steps"] == 0
    assert row["target_recall"] == 0 and row["steps"] > 0 and row["seconds"] > 0 and row["step_ms"] > 0 and row["peak_mb"] > 0

def test_report_as_table(first):
    report = read(first / "report.json")
    with (first / "report.csv").open(newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    assert len(rows) == 2
    for row, expected in zip(rows, report["rows"]):
        assert list(row) == [*expected, "target", "seed", "setup"] and (row["target"], row["seed"], row["setup"]) == (TARGET.name, "0", "biographies")
        for k, v in expected.items():
            assert row[k] == ("" if v is None else v) if v is None or isinstance(v, str) else float(row[k]) == pytest.approx(v)

def test_figure(first):
    from PIL import Image
    file = first / "figure.png"
    assert file.stat().st_size > 10_000 and file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(file) as image:
        assert image.format == "PNG" and min(image.size) > 300
        image.load()

def test_saved_model(first, original):
    import torch
    from samu.models import versions
    from samu.unlearning import weights_hash
    card, model = read(first / "model" / "samu.json"), load(first / "model")
    assert card["forgotten"] == [TARGET.name] and card["base_setup"] == "biographies" and card["seed"] == 0 and card["versions"] == versions()
    assert card["settings"]["steps_taken"] == read(first / "report.json")["rows"][1]["steps"]
    assert card["weights_sha256"] == weights_hash(dict(model.named_parameters())) != card["original_sha256"]
    assert card["original_sha256"] == weights_hash(dict(original.named_parameters()))
    changed = {n for (n, a), b in zip(original.named_parameters(), model.parameters()) if not torch.equal(a, b)}
    assert changed and all(".mlp." in n and int(n.split(".")[2]) <= 1 for n in changed)       # only what the method may change

def test_saved_model_gives_the_same_logits(first, original):
    import torch
    once, again, before = (logits(m, first / "model") for m in (load(first / "model"), load(first / "model"), original))
    assert torch.equal(once, again) and not torch.allclose(once, before, atol=0.1)

@pytest.mark.parametrize("person, says", [(TARGET, "unknown"), (OTHER, OTHER.facts["birthplace"][0])], ids=["target", "other"])
def test_ask(samu, first, person, says):
    assert good(samu("ask", ASKED.format(person.name), "--model", "first/model")).strip() == says

def test_ask_with_unknown_words(samu, first):
    complaint(samu("ask", "Question: Xyzzy plays the", "--model", "first/model"), "'Xyzzy'")

def test_same_seed_same_report(samu, folder, first):
    good(samu("unlearn", TARGET.name, "--seed", 0, "--out", "again"))
    assert without(read(folder / "again" / "report.json")) == without(read(first / "report.json"))
    assert read(folder / "again" / "model" / "samu.json") == read(first / "model" / "samu.json")

def test_a_second_person(samu, folder, first):
    good(samu("unlearn", SECOND.name, "--setup", "first/model", "--out", "second"))
    card = read(folder / "second" / "model" / "samu.json")
    assert card["forgotten"] == [TARGET.name, SECOND.name] and card["base_setup"] == "biographies"
    assert card["original_sha256"] == read(first / "model" / "samu.json")["weights_sha256"] != card["weights_sha256"]
    report = read(folder / "second" / "report.json")
    assert report["setup"].endswith("first/model") and report["rows"][1]["target_recall"] == 0 and report["rows"][1]["retain_ratio"] >= 0.97
    model = load(folder / "second" / "model")
    from transformers import AutoTokenizer
    from samu.models import answer
    tokenizer = AutoTokenizer.from_pretrained(folder / "second" / "model", local_files_only=True)
    said = [reply.split()[0] for reply in answer(model, tokenizer, [ASKED.format(p.name) for p in (TARGET, SECOND, OTHER)], 2)]
    assert said == ["unknown", "unknown", OTHER.facts["birthplace"][0]]


# --- Bad input: one line, exit code 2, and nothing is changed

@pytest.fixture(scope="session")
def bad_folders(folder, first):
    "Folders of models and SAEs with one thing wrong each."
    import shutil
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    (folder / "empty").mkdir(exist_ok=True)
    for name in "missing_column", "not_utf8":
        shutil.copytree(first / "model", folder / name)
        (folder / name / "samu.json").unlink()
    (folder / "missing_column" / "entities.csv").write_text("name,kind,answers\nMira Tolan,person,Oslo\n", encoding="utf-8")
    (folder / "not_utf8" / "entities.csv").write_bytes("name,kind,attribute,answers\nJosé Tolan,person,birthplace,Oslo\n".encode("latin-1"))
    for name, width, hook in ("sae_of_another_width", 48, "blocks.1.hook_resid_post"), ("sae_of_another_hook", 64, "blocks.2.hook_resid_post"):
        StandardSAE(StandardSAEConfig(d_in=width, d_sae=16, metadata=SAEMetadata(hook_name=hook))).save_model(folder / name)
    return folder

BAD = {  # arguments -> parts of the message; `--out` is added: the folder of the first results, then a new one, and so on
    "target": (["Nobody Inparticular"], ["'Nobody Inparticular'", "'biographies'"]),
    "setup": ([TARGET.name, "--setup", "nonsense"], ["'nonsense'", "biographies"]),
    "objective": ([TARGET.name, "--objective", "nonsense"], ["'nonsense'", "triplet"]),
    "folder without a model": ([TARGET.name, "--setup", "empty"], ["'empty'", "config.json"]),
    "table without a column": ([TARGET.name, "--setup", "missing_column"], ["entities.csv", "'attribute'"]),
    "table that is not UTF-8": ([TARGET.name, "--setup", "not_utf8"], ["entities.csv", "UTF-8"]),
    "SAE of another width": ([TARGET.name, "--sae", "sae_of_another_width"], ["48", "64"]),
    "SAE of another hook": ([TARGET.name, "--sae", "sae_of_another_hook"], ["blocks.2.hook_resid_post", "blocks.1.hook_resid_post"]),
}

@pytest.mark.parametrize("case", BAD)
def test_bad_input(samu, bad_folders, first, case):
    arguments, parts = BAD[case]
    out = ["first", f"new/{case}"][list(BAD).index(case) % 2]
    before = contents(bad_folders)
    complaint(samu("unlearn", *arguments, "--out", out), *parts)
    assert contents(bad_folders) == before


# --- Bad folders, in this process, since torch is loaded by now

def say(monkeypatch, capfd, cwd, *args):
    "What `samu` says on stderr when it runs here, with its exit code."
    from samu.cli import main
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["samu", *args])
    with pytest.raises(SystemExit) as stop: main()
    return stop.value.code, capfd.readouterr().err.strip().splitlines()

@pytest.mark.parametrize("setup", ["biographies", "gemma-3-270m"])
def test_a_name_is_refused_before_anything_is_made(tmp_path, monkeypatch, capfd, setup):
    "With nothing in the cache, a misspelt name must not cost the training or the conversion of a model."
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "cache"))
    code, lines = say(monkeypatch, capfd, tmp_path, "unlearn", "Nobody Inparticular", "--setup", setup)
    assert code == 2 and len(lines) == 1 and "'Nobody Inparticular'" in lines[0] and repr(setup) in lines[0], lines
    assert list((tmp_path / "cache").rglob("*")) == []

def break_weights(model): (model / "model.safetensors").unlink()
def cut_weights(model): (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:100])
def break_config(model): (model / "config.json").write_text("{")
def make_unheard_of(model): (model / "config.json").write_text('{"model_type": "unheard_of"}')
def make_unsupported(model): (model / "config.json").write_text('{"model_type": "gpt2"}')
def empty_card(model): (model / "samu.json").write_text("{}")
def break_card(model): (model / "samu.json").write_text("{")

@pytest.mark.parametrize("damage", [break_weights, cut_weights, break_config, make_unheard_of, make_unsupported, empty_card, break_card])
def test_damaged_model(first, tmp_path, monkeypatch, capfd, damage):
    import shutil
    model = tmp_path / "damaged"
    shutil.copytree(first / "model", model)
    damage(model)
    code, lines = say(monkeypatch, capfd, tmp_path, "entities", "--setup", "damaged")
    assert code == 2 and len(lines) == 1 and lines[0].startswith("samu: ") and ("damaged" in lines[0] or damage is make_unsupported), lines

def test_damaged_model_is_not_asked(first, tmp_path, monkeypatch, capfd):
    import shutil
    shutil.copytree(first / "model", tmp_path / "damaged")
    cut_weights(tmp_path / "damaged")
    code, lines = say(monkeypatch, capfd, tmp_path, "ask", ASKED.format(OTHER.name), "--model", "damaged")
    assert code == 2 and len(lines) == 1 and "damaged" in lines[0], lines

@pytest.mark.parametrize("damage", ["cut", "gone", "config"])
def test_damaged_sae(bad_folders, tmp_path, monkeypatch, capfd, damage):
    import shutil
    shutil.copytree(bad_folders / "sae_of_another_hook", tmp_path / "damaged")
    weights = tmp_path / "damaged" / "sae_weights.safetensors"
    if damage == "cut": weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "gone": weights.unlink()
    else: (tmp_path / "damaged" / "cfg.json").write_text("{}")
    code, lines = say(monkeypatch, capfd, tmp_path, "latents", "--sae", "damaged")
    assert code == 2 and len(lines) == 1 and lines[0].startswith("samu: ") and "damaged" in lines[0], lines

def test_a_users_own_folder_is_found_again(first, tmp_path, monkeypatch):
    "A model saved from a folder knows its people wherever it is loaded from."
    import shutil
    import pandas as pd
    from samu.models import load_setup
    from samu.unlearning import Unlearned, save_model
    own = tmp_path / "here" / "own"
    shutil.copytree(first / "model", own)
    (own / "samu.json").unlink()
    rows = [[e.name, e.kind, a, "|".join(v)] for e in make_biographies(0).people for a, v in e.facts.items()]
    pd.DataFrame(rows, columns=["name", "kind", "attribute", "answers"]).to_csv(own / "entities.csv", index=False)
    monkeypatch.chdir(own.parent)
    setup = load_setup("own", device="cpu")
    assert setup.find(OTHER.name).facts["birthplace"] == OTHER.facts["birthplace"] and len(setup.unknown) > 10
    done = Unlearned("match", OTHER.name, dict(seed=0, blocks="site", weights="mlp"), None, 0.0, 0.0, 0.0)
    save_model(setup, done, tmp_path / "saved")
    (tmp_path / "elsewhere").mkdir(); monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_setup(str(tmp_path / "saved"), device="cpu")
    assert [e.name for e in again.entities] == [e.name for e in setup.entities] and again.find(OTHER.name) == setup.find(OTHER.name)


# --- Side by side

@pytest.mark.parametrize("args, parts", [("biographies", ("'biographies'", "--setup")), ("first/model", ("'gone.csv'",))])
def test_table_that_cannot_be_used(samu, first, args, parts): complaint(samu("entities", "--setup", args, "--entities", "gone.csv"), *parts)

def test_a_table_on_the_command_line(samu, folder, first):
    people = make_biographies(0).people[:12]
    rows = [f"{e.name},person,{a},{v[0]}" for e in people for a, v in e.facts.items()]
    (folder / "mine.csv").write_text("name,kind,attribute,answers\n" + "\n".join(rows), encoding="utf-8")
    said = good(samu("entities", "--setup", "first/model", "--entities", "mine.csv"))
    assert all(e.name in said for e in people)

def test_compare(samu, folder):
    out = good(samu("compare", OTHER.name, "--methods", "match", "--seeds", "1", "--out", "side"))
    assert sorted(p.name for p in (folder / "side").iterdir()) == ["figure.png", "report.csv", "report.json", "rows.csv"]
    report = read(folder / "side" / "report.json")
    assert (report["target"], report["seed"]) == ([OTHER.name], [1])
    assert [(r["target"], r["seed"], r["method"]) for r in report["rows"]] == [(OTHER.name, 1, "original"), (OTHER.name, 1, "match")]
    assert report["rows"][1]["target_recall"] == 0 and "match" in out
    before = (folder / "side" / "rows.csv").read_text()
    good(samu("compare", OTHER.name, "--methods", "match", "--seeds", "1", "--out", "side"))
    assert (folder / "side" / "rows.csv").read_text() == before                            # seconds and all: nothing was run again

@pytest.mark.parametrize("args, parts", [((OTHER.name, "Nobody"), ("'Nobody'",)), ((OTHER.name, "--methods", "match,tripled"), ("'tripled'", "triplet"))])
def test_compare_bad_input(samu, folder, args, parts):
    complaint(samu("compare", *args, "--out", "bad"), *parts)
    assert not (folder / "bad").exists()


# --- The demo

@pytest.fixture(scope="session")
def demo(samu, folder):
    good(samu("demo", "--seed", 0, "--out", "demo"))
    return {row["method"]: row for row in read(folder / "demo" / "report.json")["rows"]}

def test_demo(demo, folder):
    assert list(demo)[0] == "original" and {"triplet", "match", "ga"} <= set(demo)
    assert sorted(p.name for p in (folder / "demo").iterdir()) == ["figure.png", "model", "report.csv", "report.json"]
    assert read(folder / "demo" / "model" / "samu.json")["method"] == "triplet"
    row = demo["triplet"]
    assert row["target_recall"] == 0
    assert row["retain_ratio"] >= 0.99 and row["unknown_rate"] >= 0.97 and row["perplexity_ratio"] <= 1.03
    assert row["alignment_percentile"] >= 0.05 and row["probe_known"] <= 0.10

def test_demo_says_how_many_ways(demo, samu):
    "The help and the demo agree on the number of methods."
    numbers = dict(two=2, three=3, four=4, five=5, six=6, seven=7, eight=8)
    words = good(samu("--help")).replace("│", " ").split()
    assert numbers[words[words.index("ways.") - 1]] == len(demo) - 1

def test_gradient_ascent_wrecks_the_model(demo):
    assert demo["ga"]["perplexity_ratio"] > 2 or demo["ga"]["retain_ratio"] < 0.5

def test_methods_do_not_disturb_each_other(demo, first):
    "The row of the demo's triplet, run after other methods, is that of a triplet run alone."
    alone = read(first / "report.json")["rows"][1]
    assert {k: v for k, v in demo["triplet"].items() if k not in DIFFER} == {k: v for k, v in alone.items() if k not in DIFFER}
