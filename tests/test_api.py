"The front door: what `import samu` costs, the README's lines, five extensions of ten lines, the wheel."

import importlib
import inspect
import json
import re
import runpy
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import samu
from samu.workshop import registry

ROOT = Path(__file__).resolve().parent.parent
VERBS = ["load", "unlearn", "evaluate", "compare", "audit"]
REGISTRARS = ["objective", "retain_loss", "method", "metric", "attack", "register_setup"]
REGISTRIES = [registry.OBJECTIVES, registry.METHODS, registry.METRICS, registry.ATTACKS, registry.SETUPS]


def python(code, cwd=ROOT, flags=()):
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=600
    )


# --- The front door


def test_import_is_fast():
    "As a multiple of an empty interpreter: a slow machine does not matter. Nothing heavy is imported."

    def seconds(code):
        start = time.perf_counter()
        assert python(code).returncode == 0
        return time.perf_counter() - start

    empty, ours = (min(seconds(code) for _ in range(3)) for code in ("pass", "import samu"))
    assert ours < 20 * empty
    heavy = python("import samu, sys; print({'torch', 'pandas', 'numpy', 'transformers'} & set(sys.modules))")
    assert heavy.stdout.strip() == "set()", heavy


def test_everything_is_typed_and_described():
    assert set(samu.__all__) == {*VERBS, *REGISTRARS, "UserError"} and samu.__version__
    for name in VERBS + REGISTRARS:
        function = getattr(samu, name)
        hints = [p.annotation for p in inspect.signature(function).parameters.values()]
        assert function.__doc__ and inspect.Parameter.empty not in hints, name
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, name
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, (
            f"{name} hides options"
        )


def test_no_module_takes_the_name_of_a_verb():
    assert not set(VERBS) & {f.stem for f in Path(samu.__file__).parent.glob("*.py")}
    assert inspect.isfunction(samu.audit)


TAKEN = """
import samu
def refused(decorate):
    try: decorate(lambda *args: 0)
    except samu.UserError as error: return "already registered" in str(error)
print([refused(samu.retain_loss("squared")), refused(samu.objective(name="triplet")), refused(samu.method("npo")),
       refused(samu.method("two_sided")), refused(samu.metric("target_recall", good="low")),
       refused(samu.attack("paraphrase")),
       refused(samu.retain_loss("answers")), refused(lambda f: samu.register_setup("biographies", f))])
"""


def test_names_of_built_in_entries_are_refused_whatever_was_imported():
    done = python(TAKEN)
    assert done.stdout.strip() == str([True] * 8), done.stderr[-2000:]


ELSEWHERE = """
import samu
def refused(decorate):
    try: decorate(lambda *args: 0)
    except samu.UserError as error: return "needs another name" in str(error)
print([refused(samu.objective(name=n)) for n in ("npo", "two_sided", "random_dictionary", "original", "a+b", "a,b")],
      [refused(samu.method(n)) for n in ("triplet", "retrained")],
      [refused(samu.metric(n, good="low")) for n in ("target", "method", "seconds", "notes")])
"""


def test_a_name_that_means_something_else_is_refused():
    done = python(ELSEWHERE)
    assert done.stdout.strip() == f"{[True] * 6} {[True] * 2} {[True] * 4}", done.stderr[-2000:]


def test_a_folder_in_the_place_of_an_experiment_or_a_run_is_refused():
    for call, maker in ((lambda: samu.unlearn("out/model", "A"), "load"), (lambda: samu.compare("out/model", "A", "npo"), "load"),
                        (lambda: samu.evaluate("out/model"), "unlearn")):
        with pytest.raises(samu.UserError, match=f"give what samu.{maker} returns, not 'out/model'"):
            call()


NAMED = "from samu.forgetting import method_named; print([method_named(m).name for m in {names}])"


def test_every_method_is_found_without_another_import():
    names = ["npo", "two_sided", "triplet", "triplet+match"]
    assert python(NAMED.format(names=names)).stdout.strip() == str(names)


LATE = """
from samu.forgetting import configure, method_named
from samu.workshop.registry import ATTACKS, METRICS
from samu.workshop.setups import Settings
print([configure(Settings(), method_named("triplet"), dict(retain=name)).retain for name in ("both", "squared")],
      METRICS.get_or_raise("attack_left").name, ATTACKS.get_or_raise("paraphrase").name)
"""


def test_a_second_run_on_top_of_another_is_refused():
    "Executed twice, a cell had trained a run that could be neither measured nor saved, over one that nothing could undo."
    exp = SimpleNamespace(entities=[], applied="run")
    with pytest.raises(samu.UserError, match="another run is in the model: restore"):
        samu.unlearn(exp, "A")


def test_every_part_is_found_without_another_import():
    defined = {n for f in Path(samu.__file__).parent.rglob("*.py")
               for n in re.findall(r"^@part\ndef (\w+)", f.read_text(encoding="utf-8"), re.M)}
    code = ("import importlib; from samu.workshop.setups import PART_MODULES, PARTS\n"
            "for n, m in PART_MODULES.items(): importlib.import_module(m); print(n if n in PARTS else '')")
    done = python(code)
    assert set(done.stdout.split()) == defined - {"unknown", "sae_texts"} and len(defined) > 6, done.stderr[-2000:]


def test_a_retain_loss_and_a_metric_of_a_later_chapter_are_found_without_another_import():
    "They were \"no retain loss 'both'\", \"no metric 'attack_left'\", until something had imported their chapters."
    done = python(LATE)
    assert done.stdout.strip() == "['both', 'squared'] attack_left paraphrase", done.stderr[-2000:]


def test_the_lines_of_the_readme_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    [lines] = [block for block in blocks if "import samu" in block]
    assert sum(bool(line.strip()) for line in lines.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(lines, "README.md", "exec"), names)
    row = samu.evaluate(names["run"])
    assert row.target_recall <= 0.1 and row.retain_ratio >= 0.97 and names["exp"].applied is None
    few = samu.evaluate(names["run"], ["target_recall"])
    assert few.target_recall == row.target_recall and "retain_ratio" not in few
    assert {"report.json", "audit.html"} <= {f.name for f in (tmp_path / "out" / "audit").iterdir()}
    assert (tmp_path / "out" / "model" / "config.json").is_file()
    assert "target_recall" in capsys.readouterr().out


# --- Five extensions

EXTENSIONS = {  # each is at most ten lines, and all that there is to write
    "objective": """
        import samu
        @samu.objective
        def plain_mean(residuals, aim, frozen):
            "Toward the mean residual of unknown names, every coordinate alike."
            return (residuals.values - aim.mean_residual[(residuals.from_end > 0).long()]).pow(2).mean()
    """,
    "method": """
        import samu
        @samu.method("half_steps", steps=40, retain="residual")
        def half_steps(task):
            "The triplet objective with fewer steps."
            from samu.forgetting import triplet
            return lambda step: task.at_site(triplet)
    """,
    "metric": """
        import samu
        @samu.metric(good="low", threshold=5, shown=True, title="It answers in a few words")
        def reply_words(m):
            "Mean number of words in a reply about the target."
            replies = m.exp.ask(m.asked["target"])
            return sum(len(r.split()) for r in replies) / len(replies)
    """,
    "attack": """
        import samu
        @samu.attack(title="the question, asked twice")
        def twice(exp, entity, helpers):
            "The same question two times."
            from samu.entities import questions
            from samu.workshop.asking import in_new_words
            return [in_new_words(q, f"{q.text} {q.text}") for q in questions([entity], exp.prompts)]
    """,
    "setup": """
        import samu
        from dataclasses import replace
        def my_own(**options):
            "The invented world under another name."
            return replace(samu.load("biographies", **options), name="my_own")
        samu.register_setup("my_own", my_own, needs="nothing at all")
    """,
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    "A file with all five, run; the registries are as before afterwards."
    for chapter in ("forgetting", "baselines", "recall_side", "attacks"):
        importlib.import_module(f"samu.{chapter}")
    before = [(r, dict(r), dict(r.owners)) for r in REGISTRIES]
    file = tmp_path_factory.mktemp("extended") / "mine.py"
    file.write_text("\n".join(inspect.cleandoc(text) for text in EXTENSIONS.values()))
    runpy.run_path(str(file), run_name="extension")
    yield file
    for r, entries, owners in before:
        r.clear()
        r.update(entries)
        r.owners = owners


@pytest.fixture(scope="module")
def seen(extended):
    "Where the five appear: the table, the figure, the audit, the command line."
    from samu.attacks import attack_table
    from samu.evaluation import measurement
    from samu.workshop.statistics import intervals
    from samu.workshop.plots import plane_figure

    exp = samu.load("my_own")
    target = exp.entities[7].name
    rows = samu.compare(exp, [target], ["plain_mean", "half_steps"])
    fig = plane_figure(intervals(rows, ["target_recall", "reply_words"]), y="reply_words")
    words = " ".join(
        text.get_text() for ax in fig.axes for text in [*ax.get_legend().get_texts(), ax.yaxis.label]
    )
    run = samu.unlearn(exp, target, "half_steps")
    try:
        attacks = attack_table(measurement(exp, target, run))
        report = samu.audit(run, extended.parent / "audit")
    finally:
        run.restore()
    return dict(
        table=f"{list(rows.columns)} {sorted(set(rows.method))} {set(rows.setup)}",
        figure=words,
        attacks=attacks.to_string(),
        audit=json.dumps(report) + (extended.parent / "audit" / "audit.html").read_text("utf-8"),
    )


PLACES = {
    "objective": ("plain_mean", "table", "figure"),
    "method": ("half_steps", "table", "figure", "audit"),
    "metric": ("reply_words", "table", "figure", "audit"),
    "attack": ("twice", "attacks"),
    "setup": ("my_own", "table"),
}


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_an_extension_appears_without_another_edit(seen, kind):
    lines = inspect.cleandoc(EXTENSIONS[kind]).splitlines()
    assert len(lines) <= 10
    name, *places = PLACES[kind]
    for place in places:
        assert name in seen[place] or name.replace("_", " ") in seen[place], (place, seen[place][:3000])


def test_extensions_on_the_command_line(extended, tmp_path, monkeypatch, capsys):
    from samu.cli import app

    monkeypatch.chdir(tmp_path)
    target = samu.load("biographies").entities[7].name
    for args in (["setups"], ["compare", target, "--setup", "my_own", "--methods", "plain_mean,half_steps"]):
        app(["--code", str(extended), *args], standalone_mode=False)
    printed = re.sub(r"\s*\n?│\s*", " ", capsys.readouterr().out)
    for word in ("my_own", "nothing at all", "plain_mean", "half_steps", "reply"):
        assert word in printed, printed
    report = json.loads((tmp_path / "out" / "compare" / "report.json").read_text("utf-8"))
    assert {"plain_mean", "half_steps", "original"} == {row["method"] for row in report["rows"]}
    assert all(isinstance(row["reply_words"], float) for row in report["rows"])


# --- What is installed


def test_wheel(tmp_path):
    import shutil

    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "settings.ini", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "samu", tree / "samu", ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "out",
    ]
    done = subprocess.run(build, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [wheel] = (tree / "out").glob("samu_unlearning-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    files = {p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*")}
    assert {"samu/py.typed", "samu/data/real_entities.csv", "samu/workshop/store.py", "samu/cli.py"} <= files
    alone = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import samu; print(samu.__version__)"
    )
    done = python(alone, cwd=tmp_path, flags=["-I", "-S"])  # no site-packages: an empty environment
    assert done.stdout.strip() == samu.__version__, done.stderr


def test_nothing_says_to_install_somebody_elses_package():
    texts = [
        p.read_text("utf-8")
        for p in [*ROOT.rglob("nbs/**/*.ipynb"), *ROOT.rglob("samu/**/*.py"), ROOT / "README.md"]
    ]
    assert [
        hit for text in texts for hit in re.findall(r"pip install [\"'\\]*samu\b(?!-)|samu\[\w+\]", text)
    ] == []


def test_a_decorator_without_brackets_is_refused():
    "It registered nothing, and said nothing."
    for decorator in (samu.attack, samu.method, samu.retain_loss):
        with pytest.raises(samu.UserError, match="write brackets"):
            decorator(lambda *args: [])
