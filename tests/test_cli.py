"""The command line, run as a user runs it.

A few commands run in processes of their own, the others in this one, where torch is loaded already. What a
command leaves behind is kept for the tests after it.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
from samu.workshop import console
from samu.workshop.invented import make_biographies
from samu.workshop.privacy import read_card
from samu.workshop.registry import UserError

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ["demo", "setups", "entities", "unlearn", "compare", "audit"]
COMMANDS += ["check", "plan", "sweep", "benchmark", "purge", "latents", "ask", "cache"]
TARGET, SECOND, OTHER = (make_biographies(0).people[i] for i in (7, 20, 3))  # the demo forgets the first
ASKED = "Question: From which town does {} come? Answer:"
DIFFER = {"seconds", "step_ms", "peak_mb"}  # what may change from run to run
PARTS = ["loading", "grading", "dictionary", "latents", "original", "training", "measuring", "saving"]
LIBRARIES = {"torch", "transformers", "transformer_lens", "sae_lens", "pandas", "matplotlib"}


def run(command, cwd, **more):
    "Runs a command in a process of its own."
    environ = {
        **os.environ,
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
        "NO_COLOR": "1",
        **more,
    }
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, timeout=1200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Where all commands run."
    return tmp_path_factory.mktemp("cli")


@pytest.fixture
def samu(folder, monkeypatch, capfd):
    "Runs `samu` in this process: (exit code, what it printed, what it complained about)."

    def call(*args):
        monkeypatch.chdir(folder)
        return tiny.run_samu(monkeypatch, capfd, args, columns=100)

    return call


def good(done):
    code, out, err = done
    assert code == 0 and "Traceback" not in err and "Warning" not in err, err[-3000:]
    return out


def complaint(done, *parts):
    "Checks that a command failed with exit code 2 and one line, in which these parts stand."
    code, out, err = done
    lines = err.strip().splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("samu: ") and not out, (
        code,
        out,
        err[-3000:],
    )
    for part in parts:
        assert part in lines[0]


def cells(text):
    "The rows of a printed table."
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def contents(folder):
    "{path: digest} of everything below a folder."
    files = [p for p in sorted(Path(folder).rglob("*")) if p.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


# --- Without a model


def test_help_names_the_commands_and_imports_nothing_heavy(folder):
    code = (
        "import sys; sys.argv = ['samu', '--help']\nfrom samu.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"assert not {LIBRARIES} & set(sys.modules)"
    )
    done = run([sys.executable, "-c", code], folder)
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode()
    rows = [line.split() for line in out[out.index("Commands") :].splitlines()[1:]]
    assert [r[1] for r in rows if len(r) > 2 and r[1] in COMMANDS] == COMMANDS


def test_without_typer_one_line_says_what_to_install(folder):
    code = "import sys; sys.modules['typer'] = None\nfrom samu.cli import main"
    done = run([sys.executable, "-c", code], folder)
    assert done.returncode == 1 and done.stderr.decode().strip().count("\n") == 0
    assert b"pip install typer rich" in done.stderr


@pytest.mark.parametrize(
    "args, parts",
    [
        (["entities", "--grade", "nonsense"], ["--grade", "'nonsense'", "known"]),
        (["ask", " ", "--model", "gone"], ["question is empty"]),
        (["ask", "The life of", "--model", "gone"], ["gone"]),
        (["compare", TARGET.name, "--seeds", "0,one", "--out", "bad"], ["--seeds", "'0,one'", "0,1,2"]),
        (["compare", TARGET.name, "--methods", "match,tripled", "--out", "bad"], ["'tripled'", "triplet"]),
        (["compare", TARGET.name, "Bipo Gifan", "--out", "bad"], ["'Bipo Gifan'", "Bipo Gifen"]),
        (["compare", TARGET.name, OTHER.name, "--alias", "X", "--out", "bad"], ["--alias", "one person"]),
        (["audit", "gone", "--out", "bad"], ["gone"]),
        (["unlearn", "Bipo Gifan", "--out", "bad"], ["'Bipo Gifan'", "Bipo Gifen"]),
        (
            ["unlearn", "Mick Jordan", "--setup", "gemma-3-270m", "--out", "bad"],
            ["'Mick Jordan'", "gemma-3-270m"],
        ),
        (["unlearn", TARGET.name, "--setup", "biography", "--out", "bad"], ["'biography'", "biographies"]),
        (["unlearn", TARGET.name, "--method", "nonsense", "--out", "bad"], ["'nonsense'"]),
        (["unlearn", TARGET.name, "--people", "gone.csv", "--out", "bad"], ["gone.csv"]),
        (["--code", "gone.py", "setups"], ["gone.py", "--code"]),
        (["setups", "--code", "gone.py"], ["gone.py", "--code"]),
        (["unlearn", TARGET.name, "--alias", " ", "--out", "bad"], ["--alias", "empty"]),
        (["unlearn", TARGET.name, "--setup", "biographies-doors", "--frozen-bits", 8, "--out", "bad"], ["frozen_bits"]),
        (["cache", "--clear", "--kind", "nonsense"], ["'nonsense'"]),
        (["unlearn", TARGET.name, OTHER.name, "--alias", "X", "--out", "bad"], ["--alias", "one person"]),
        (["unlearn", TARGET.name, "--push-to", "me/model", "--out", "bad"], ["--push-to", "token"]),
        (["unlearn", TARGET.name, "--push-to", "me", "--out", "bad"], ["owner/name", "'me'"]),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(samu, folder, tmp_path, monkeypatch, args, parts):
    "With an empty cache: a misspelt name must not cost the training or the conversion of a model."
    monkeypatch.setenv("SAMU_CACHE", str(tmp_path / "cache"))
    complaint(samu(*args), *parts)
    assert not (folder / "bad").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_no_steps(samu):
    code, _, err = samu("unlearn", TARGET.name, "--steps", 0, "--out", "bad")
    assert code == 2 and "--steps" in err and "Traceback" not in err


def test_a_table_for_the_biographies_is_refused(samu, folder):
    (folder / "mine.csv").write_text(f"name,kind,attribute,answers\n{TARGET.name},person,hobby,chess\n")
    complaint(samu("entities", "--people", "mine.csv"), "people")


def test_setups(samu):
    rows = cells(good(samu("setups")))
    assert [r[0] for r in rows if r[0]] == ["biographies", "biographies-doors", "gemma-3-270m"]


def test_cache_is_listed_and_cleared(samu, tmp_path, monkeypatch):
    from samu.workshop.store import keep_many

    monkeypatch.setenv("SAMU_CACHE", str(tmp_path))
    keep_many("answers", {"k": "v"})
    assert [r[:2] for r in cells(good(samu("cache")))] == [["answers", "1"]]
    assert cells(good(samu("cache", "--clear", "--kind", "answers"))) == []


# --- Errors: what the user can mend, and what not


def fail_with(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    "error, says",
    [
        (UserError("no entity 'X'"), "no entity 'X'"),
        (OSError(28, "No space left on device", "model.safetensors"), "disk is full"),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "disk is full",
        ),
        (PermissionError(13, "Permission denied", "out"), "out: Permission denied"),
        (MemoryError(), "--lora-rank"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "--lora-rank"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, says, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        console.run_command(fail_with(error))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("samu: ") and says in err and err.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["samu", "--debug"])
    with pytest.raises(type(error)):
        console.run_command(fail_with(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        KeyError("a bug"),
        RuntimeError("a bug"),
        OSError("a bug"),
        ZeroDivisionError("a bug"),
        IndexError("a bug"),
    ],
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error), match="a bug"):
        console.run_command(fail_with(error))


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), SystemExit(130)])
def test_an_interrupt_says_so(capsys, stopped):
    with pytest.raises(SystemExit) as stop:
        console.run_command(fail_with(stopped))
    assert stop.value.code == 130 and "stopped" in capsys.readouterr().err


def test_no_encoding_is_fatal(folder):
    "Boxes and names that a code page lacks: the output is not worth the result."
    code = (
        "from samu.workshop import console\n"
        "rows = [dict(name='Łukasz Żak 上海', recall=1.0)]\n"
        "console.run_command(lambda: console.show(rows, ['name', 'recall'], 'Ca$h_^ Mon$y … 上海'))"
    )
    for encoding in ("cp1252", "ascii", "utf-8"):
        done = run([sys.executable, "-c", code], folder, PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and b"Ca$h_^ Mon$y" in done.stdout, (encoding, done.stderr)


def test_a_column_without_values_is_not_printed(capsys):
    rows = [dict(method="ours", recall=0.0, missing=float("nan")), dict(method="npo", recall=0.5)]
    console.show(rows, ["method", "recall", "missing", "absent"])
    out = capsys.readouterr().out
    assert "recall" in out and "0.00" in out and "missing" not in out and "absent" not in out


def test_private_json_of_another_program_is_refused_first(tmp_path):
    (tmp_path / "private.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="samu did not write"):
        console.writable(tmp_path, "biographies")


def test_nothing_that_names_people_goes_into_a_saved_model(tmp_path):
    (tmp_path / "samu.json").write_text("{}")
    (tmp_path / ".samu").write_text("samu.json\n")
    with pytest.raises(UserError, match="is a saved model, to hold no names"):
        console.writable(tmp_path, "biographies")


def test_home_is_expanded(samu, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").write_text("a file")
    complaint(samu("unlearn", TARGET.name, "--out=~/mine/results"), "mine")
    assert not list(folder.glob("~*"))


@pytest.mark.parametrize("out, holds", [("file/results", "file"), ("theirs", "notes.txt")])
def test_out_is_tried_before_any_work(samu, folder, out, holds):
    (folder / "theirs" / "model").mkdir(parents=True, exist_ok=True)
    (folder / "theirs" / "model" / "notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    complaint(samu("unlearn", TARGET.name, "--out", out), holds)
    assert (folder / "file").read_text() == (folder / "theirs" / "model" / "notes.txt").read_text() == "mine"


# --- The demo: three methods on one person, in a process of its own


@pytest.fixture(scope="module")
def demo(folder):
    "What `samu demo` printed; its results are in demo/. In a code page that lacks the boxes of tables."
    done = run(
        [sys.executable, "-c", "from samu.cli import main; main()", "demo", "--out", "demo"],
        folder,
        PYTHONIOENCODING="cp1252",
    )
    assert done.returncode == 0, done.stderr.decode("cp1252")[-3000:]
    assert b"Traceback" not in done.stderr and b"Warning" not in done.stderr
    return done.stdout.decode("cp1252")


def test_what_is_written(demo, folder):
    files = sorted(p.name for p in (folder / "demo").iterdir() if not p.name.startswith("."))
    assert files == ["figure.png", "model", "private.json", "report.csv", "report.json", "samu.log"]
    assert TARGET.name not in (folder / "demo" / "model" / "samu.json").read_text(encoding="utf-8")
    modes = {p.name: p.stat().st_mode & 0o777 for p in (folder / "demo").iterdir() if p.is_file()}
    assert {mode for name, mode in modes.items() if not name.startswith(".")} == {0o600}
    assert "written to" in demo and TARGET.facts["birthplace"][0] in demo and "…" not in demo
    [line] = [line for line in demo.splitlines() if "loading" in line]
    assert [part for part in PARTS if part in line] == PARTS


def test_report(demo, folder):
    import samu as package

    report = read(folder / "demo" / "report.json")
    assert report["samu_version"] == package.__version__ and report["arguments"] == ["demo", "--out", "demo"]
    assert (report["setup"], report["target"], report["seed"]) == ("biographies", [TARGET.name], 0)
    assert {"torch", "transformers"} <= set(report["versions"]) and set(PARTS[:-1]) <= set(report["seconds"])
    assert all(a["truth"] in a["before"] and a["after"].split()[0] == "unknown" for a in report["answers"])
    rows = {row["method"]: row for row in report["rows"]}
    assert list(rows) == ["original", "triplet", "match", "ga"]
    with (folder / "demo" / "report.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [r["method"] for r in table] == list(rows)
    assert all(float(r["target_recall"]) == rows[r["method"]]["target_recall"] for r in table)


def test_the_demo_forgets_and_gradient_ascent_wrecks(demo, folder):
    rows = {row["method"]: row for row in read(folder / "demo" / "report.json")["rows"]}
    assert rows["original"]["target_recall"] >= 0.9 and rows["original"]["retain_ratio"] == 1
    for method in ("triplet", "match"):
        row = rows[method]
        assert row["target_recall"] == 0 and row["retain_ratio"] >= 0.97 and row["unknown_rate"] >= 0.97
        assert row["perplexity_ratio"] <= 1.05 and row["probe_known"] <= 0.2
    assert rows["ga"]["perplexity_ratio"] > 2 or rows["ga"]["retain_ratio"] < 0.5


def test_figure(demo, folder):
    from PIL import Image

    with Image.open(folder / "demo" / "figure.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
        image.load()


def test_saved_model(demo, folder, exp):
    import torch
    from samu.workshop.lm import load_lm

    model, _ = load_lm(folder / "demo" / "model", "cpu")
    card, before = read_card(folder / "demo" / "model"), dict(exp.model.named_parameters())
    assert (
        card["forgotten"] == [TARGET.name]
        and card["method"] == "triplet"
        and card["base_setup"] == "biographies"
    )
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n].cpu())}
    assert changed and all(".mlp." in n and int(n.split(".")[2]) <= exp.layer for n in changed)


@pytest.mark.parametrize("person, says", [(TARGET, "unknown"), (OTHER, OTHER.facts["birthplace"][0])])
def test_ask(demo, samu, person, says):
    assert good(samu("ask", ASKED.format(person.name), "--model", "demo/model")).strip() == says


def test_ask_with_unknown_words(demo, samu):
    complaint(samu("ask", "Question: Xyzzy plays the", "--model", "demo/model"), "'Xyzzy'")


# --- One person alone, then a second one from the saved model


def without(rows):
    return [{k: v for k, v in row.items() if k not in DIFFER} for row in rows]


def test_same_seed_same_result_whatever_ran_before(demo, samu, folder):
    good(samu("unlearn", TARGET.name, "--out", "alone"))
    alone, among = (read(folder / f / "report.json")["rows"] for f in ("alone", "demo"))
    assert without(alone) == without(among[:2])
    assert contents(folder / "alone" / "model") == contents(folder / "demo" / "model")


def test_any_method_can_be_saved(demo, samu, folder):
    good(samu("unlearn", TARGET.name, "--method", "npo", "--steps", 3, "--out", "npo"))
    card = read_card(folder / "npo" / "model")
    assert card["method"] == "npo" and card["settings"]["steps"] == 3


def test_two_people_at_once(demo, samu, folder):
    good(samu("unlearn", SECOND.name, OTHER.name, "--out", "two"))
    assert read_card(folder / "two" / "model")["forgotten"] == [SECOND.name, OTHER.name]
    assert read(folder / "two" / "report.json")["rows"][1]["target_recall"] <= 0.1


def test_a_second_person_from_a_saved_model(demo, samu, folder):
    before = contents(folder / "demo")
    complaint(samu("unlearn", SECOND.name, "--setup", "demo/model", "--out", "demo/model"), "the model that is read")
    complaint(samu("unlearn", SECOND.name, "--setup", "demo/model", "--out", "."), "the model that is read")
    good(samu("unlearn", SECOND.name, "--setup", "demo/model", "--out", "second"))
    assert contents(folder / "demo") == before
    card = read_card(folder / "second" / "model")
    assert card["forgotten"] == [TARGET.name, SECOND.name] and card["base_setup"] == "biographies"
    row = read(folder / "second" / "report.json")["rows"][1]
    assert row["target_recall"] <= 0.1 and row["retain_ratio"] >= 0.97
    asked = [
        good(samu("ask", ASKED.format(p.name), "--model", "second")).strip()
        for p in (TARGET, SECOND, OTHER)
    ]
    assert asked == ["unknown", "unknown", OTHER.facts["birthplace"][0]]


# --- A log, going on, a card, the hub


def test_log_and_resume(samu, folder):
    options = ["unlearn", TARGET.name, "--steps", 3, "--out", "logged"]
    good(samu(*options))
    log = folder / "logged" / "samu.log"
    first = log.read_text(encoding="utf-8")
    lines = first.splitlines()
    assert '"steps": 3' in lines[0] and lines[-1].endswith("done") and any("training" in line for line in lines)
    assert log.stat().st_mode & 0o777 == 0o600
    good(samu(*options, "--resume"))  # with what is kept: an edited table or model would be seen
    assert log.read_text(encoding="utf-8").count(console.BEGAN) == 2
    complaint(samu(*options[:-3], 4, "--out", "logged", "--resume"), "steps = 3, not 4")
    log.write_text("\n".join(lines[:-2]) + "\n", encoding="utf-8")  # as after a kill
    good(samu(*options, "--resume"))
    assert log.read_text(encoding="utf-8").splitlines()[-1].endswith("done")
    options = read(folder / "logged" / "report.json")["options"]
    assert options["steps"] == 3 and options["names"] == [TARGET.name]


def test_how_a_command_ended_is_logged(samu, folder, monkeypatch):
    monkeypatch.setattr(console, "draw", lambda *args: fail_with(RuntimeError("CUDA out of memory."))())
    complaint(samu("unlearn", TARGET.name, "--steps", 3, "--out", "full"), "out of memory", "--lora-rank")
    assert "failed: out of memory" in (folder / "full" / "samu.log").read_text(encoding="utf-8")


def test_card_and_hub(samu, folder, monkeypatch):
    import huggingface_hub

    sent = []

    class Hub:
        def create_repo(self, name, **options):
            sent.append((name, options["private"]))

        def upload_folder(self, repo_id, folder_path):
            sent.append({f.name for f in folder_path.iterdir()})

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    good(samu("unlearn", TARGET.name, "--steps", 3, "--out", "pushed", "--push-to", "me/model"))
    assert sent[0] == ("me/model", True) and {"README.md", "config.json", "samu.json"} <= sent[1]
    card = (folder / "pushed" / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "case-" in card and "| facts given | 1.00 |" in card
    assert not [w for w in (*TARGET.name.split(), *TARGET.facts["birthplace"]) if w in card]
    assert "unlearning" in huggingface_hub.ModelCard(card).data.tags


# --- Several people


def few_claims(monkeypatch):
    from importlib import import_module

    from samu.workshop.registry import METRICS

    chapter = import_module("samu.your_model")
    monkeypatch.setattr(chapter, "METRICS", {n: METRICS[n] for n in ("recall_left", "retain_ratio")})
    monkeypatch.setattr(chapter, "FIGURES", {})
    monkeypatch.setattr(chapter, "attack_table", lambda m: pd.DataFrame())
    real = chapter.measurement
    monkeypatch.setattr(chapter, "measurement", lambda exp, name, run, gold: real(exp, name, run))


def test_three_people_at_once_are_saved_and_audited(samu, folder, monkeypatch):
    names = [TARGET.name, SECOND.name, OTHER.name]
    good(samu("unlearn", *names, "--out", "three"))
    row = read(folder / "three" / "report.json")["rows"][1]
    assert row["target_recall"] <= 0.1 and row["retain_ratio"] >= 0.95
    few_claims(monkeypatch)
    good(samu("audit", "three"))
    people = read(folder / "three" / "audit" / "report.json")["people"]
    assert [p["target"] for p in people] == names and all(p["recall"]["now"] <= 0.2 for p in people)


def test_in_turn_then_one_more(samu, folder, monkeypatch):
    good(samu("unlearn", SECOND.name, OTHER.name, "--in-turn", "--out", "turns"))
    card = read_card(folder / "turns" / "model")
    assert card["forgotten"] == [SECOND.name, OTHER.name]
    good(samu("unlearn", TARGET.name, "--setup", "turns/model", "--out", "later"))
    few_claims(monkeypatch)
    good(samu("audit", "later"))
    people = read(folder / "later" / "audit" / "report.json")["people"]
    assert [p["target"] for p in people] == [SECOND.name, OTHER.name, TARGET.name]
    assert all(p["recall"]["now"] <= 0.2 for p in people)


def test_a_fact_that_stays(samu, folder):
    good(samu("unlearn", TARGET.name, "--method", "simnpo", "--keep-fact", "hobby", "--out", "stays"))
    row = read(folder / "stays" / "report.json")["rows"][1]
    assert row["target_recall"] <= 0.1 and row["kept_facts"] >= 0.6 and row["kept_facts_before"] == 1
    assert read_card(folder / "stays" / "model")["settings"]["keep_facts"] == ["hobby"]


def test_saved_before_printed(demo, samu, folder, monkeypatch):
    "Nothing that is printed or drawn can lose what was trained."

    def broken(*args, **kwargs):
        raise RuntimeError("the printer is on fire")

    monkeypatch.setattr(console, "show", broken)
    with pytest.raises(RuntimeError, match="on fire"):
        samu("unlearn", TARGET.name, "--out", "printed")
    monkeypatch.setattr(console, "draw", broken)
    with pytest.raises(RuntimeError, match="on fire"):
        samu("unlearn", TARGET.name, "--out", "drawn")
    for name in ("printed", "drawn"):
        assert (folder / name / "report.json").is_file() and (
            folder / name / "model" / "config.json"
        ).is_file()


# --- The other commands, on the same person


def test_entities(samu):
    names = good(samu("entities", "--grade", "known", "--names")).splitlines()
    people = [e.name for e in make_biographies(0).people]
    assert set(names) <= set(people) and len(names) >= 95
    assert [TARGET.name, "person", "5", "5", "known"] in cells(good(samu("entities", "--grade", "known")))


def test_latents(samu):
    rows = cells(good(samu("latents")))
    marks = [r[1] for r in rows]
    assert (
        set(marks) == {"known", "unknown"}
        and marks == sorted(marks)
        and len({r[0] for r in rows}) == len(rows)
    )


def test_compare(samu, folder):
    good(samu("compare", OTHER.name, "--methods", "match", "--seeds", "1", "--out", "side"))
    files = {p.name for p in (folder / "side").iterdir()}
    assert {"figure.png", "report.csv", "report.json", "rows.csv"} <= files
    modes = {p.stat().st_mode & 0o777 for p in (folder / "side").iterdir() if not p.name.startswith(".")}
    assert modes == {0o600}, "the files name people"
    report = read(folder / "side" / "report.json")
    assert [(r["target"], r["method"]) for r in report["rows"]] == [
        (OTHER.name, "original"),
        (OTHER.name, "match"),
    ]
    assert report["rows"][1]["target_recall"] == 0
    before = (folder / "side" / "rows.csv").read_bytes()
    good(samu("compare", OTHER.name, "--methods", "match", "--seeds", "1", "--out", "side"))
    assert (folder / "side" / "rows.csv").read_bytes() == before  # seconds and all: nothing was run again


def test_people_whom_the_original_hardly_knows_are_in_no_mean(tmp_path, capsys):
    rows = [dict(target="Ann Lee", method=m, seed=0, excess=0.1, target_recall=0.1, retain_ratio=1.0) for m in ("original", "npo")]
    exp, clock = SimpleNamespace(name="biographies"), console.Clock()
    console.save_comparison(exp, pd.DataFrame(rows), tmp_path, clock)
    said = capsys.readouterr().out
    assert "the original hardly knows them: Ann Lee" in said and not (tmp_path / "figure.png").exists()
    assert {f.stat().st_mode & 0o777 for f in tmp_path.iterdir() if f.suffix in (".json", ".csv")} == {0o600}
    better = [r | dict(target="Bo Ray", excess=0.9) for r in rows]
    console.save_comparison(exp, pd.DataFrame(rows + better), tmp_path, clock)
    assert "hardly knows them: Ann Lee" in capsys.readouterr().out and (tmp_path / "figure.png").is_file()


def test_results_of_another_command_or_person_are_not_replaced(demo, samu, folder):
    good(samu("unlearn", OTHER.name, "--method", "match", "--steps", 2, "--out", "his"))
    before = contents(folder / "his")
    for words, told in ((("compare", OTHER.name), "command = 'unlearn'"), (("demo",), "command = 'unlearn'"),
                        (("unlearn", SECOND.name), OTHER.name),
                        (("unlearn", OTHER.name, "--setup", "demo/model"), "setup = 'biographies'")):
        complaint(samu(*words, "--out", "his"), told, "another --out")
    code, out, err = samu("check", SECOND.name, "--out", "his")
    assert code == 2 and "this cannot be run" in out and OTHER.name in err and "another --out" in err
    assert contents(folder / "his") == before
    good(samu("unlearn", OTHER.name, "--method", "match", "--steps", 3, "--out", "his"))  # the same request, once more


def test_audit(demo, samu, folder):
    said = good(samu("audit", "demo", "--device", "cpu"))
    [person] = read(folder / "demo" / "audit" / "report.json")["people"]
    assert said.startswith(f"{person['verdict']}\nwritten to ")
    assert {"report.json", "audit.html"} <= {p.name for p in (folder / "demo" / "audit").iterdir()}
    assert TARGET.facts["birthplace"][0] not in (folder / "demo" / "audit" / "audit.html").read_text("utf-8")
    complaint(samu("audit", "demo", "--alias", OTHER.name, "--out", "alias"), "is no other name of")


# --- Damaged folders


def break_weights(model):
    (model / "model.safetensors").unlink()


def cut_weights(model):
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:100])


def break_config(model):
    (model / "config.json").write_text("{")


def make_unsupported(model):
    (model / "config.json").write_text('{"model_type": "t5"}')


def empty_card(model):
    (model / "samu.json").write_text("{}")


def break_card(model):
    (model / "samu.json").write_text("{")


@pytest.mark.parametrize(
    "damage", [break_weights, cut_weights, break_config, make_unsupported, empty_card, break_card]
)
def test_damaged_model(demo, samu, folder, damage):
    model = folder / f"damaged_{damage.__name__}"
    shutil.copytree(folder / "demo" / "model", model)
    damage(model)
    complaint(samu("entities", "--setup", model.name))


@pytest.mark.parametrize(
    "text",
    [
        "name,kind,answers\nMira Tolan,person,Oslo\n".encode(),
        "name,kind,attribute,answers\nJosé Tolan,person,birthplace,Oslo\n".encode("latin-1"),
    ],
)
def test_bad_table(demo, samu, folder, text):
    (folder / "bad.csv").write_bytes(text)
    complaint(samu("entities", "--setup", "demo/model", "--people", "bad.csv"), "bad.csv")


@pytest.mark.parametrize("width, layer", [(48, 1), (64, 2)])
def test_an_sae_that_does_not_fit(demo, samu, folder, width, layer):
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post")
    StandardSAE(StandardSAEConfig(d_in=width, d_sae=16, metadata=metadata)).save_model(folder / f"sae{width}")
    before = contents(folder / "demo")
    complaint(
        samu("unlearn", TARGET.name, "--sae", f"sae{width}", "--out", f"with{width}"),
        str(width) if width == 48 else "blocks.2",
    )
    assert contents(folder / "demo") == before
