"The rules of the house (house.py) hold, and each rule finds the faults that are planted for it."

import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import house
import pytest
from house import ROOT
from make_readme import make_readme

NOTEBOOKS, MODULES = house.notebooks(), house.modules()
TESTS, SCRIPTS = (
    [p.read_text("utf-8") for p in ROOT.glob(files)] for files in ("tests/*.py", "nbs/results/*.py")
)
SHOWN_CODE = [c.source for nb in NOTEBOOKS.values() for c in house.code_cells(nb) if not c.exported]


def run(*command, cwd=ROOT):
    environ = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # nbdev exports nothing where it is set
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)


RULES = {
    "imports only downward": lambda: house.upward_imports(NOTEBOOKS),
    "cells and chapters are short": lambda: house.tall_cells(NOTEBOOKS),
    "functions are short": lambda: house.long_functions(MODULES),
    "lines are narrow": lambda: house.wide_lines(NOTEBOOKS),
    "sentences between cells": lambda: house.long_rows(NOTEBOOKS),
    "results come early": lambda: house.late_results(NOTEBOOKS),
    "the package is small": lambda: house.too_large(MODULES),
    "nothing stands twice": lambda: house.duplicates(MODULES),
    "every definition is used": lambda: house.unused_definitions(MODULES, SHOWN_CODE + SCRIPTS),
    "every parameter is set": lambda: house.unset_parameters(MODULES, SHOWN_CODE + SCRIPTS + TESTS),
    "one word for one thing": lambda: house.words_not_said(all_texts()),
}


def all_texts():
    tables = {
        p.name: p.read_text("utf-8") for p in [*ROOT.glob("nbs/results/*"), *ROOT.glob("samu/data/*.html")]
    }
    pages = {
        name: (ROOT / name).read_text("utf-8")
        for name in ("README.md", "Makefile", "setup.py", "settings.ini")
    }
    return house.all_texts(NOTEBOOKS, MODULES) | tables | pages


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    assert RULES[rule]() == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_clean(name):
    size = (ROOT / "nbs" / f"{name}.ipynb").stat().st_size
    assert house.unclean(NOTEBOOKS[name], size) + house.used_too_early(NOTEBOOKS[name]) == []
    title = NOTEBOOKS[name]["cells"][0]
    assert title["cell_type"] == "markdown" and "# " in "".join(title["source"])


# --- Planted faults


def notebook(*sources):
    "A notebook as a dictionary; None stands for a markdown cell."
    cells = [
        dict(cell_type="markdown", source="text")
        if s is None
        else dict(cell_type="code", source=s, outputs=[], metadata={})
        for s in sources
    ]
    return dict(metadata={}, cells=cells)


TOWER = {
    "workshop/registry": ("#| default_exp workshop.registry", "#| export\nimport json"),
    "workshop/store": ("#| default_exp workshop.store", "#| export\nfrom samu.workshop.registry import x"),
    "01_low": (
        "#| default_exp low",
        "#| export\nfrom samu.workshop import store",
        "import samu\nfrom samu.low import y",
    ),
    "02_high": ("#| default_exp high", "#| export\nimport samu.low"),
    "index": ("from samu.high import z",),
}


@pytest.mark.parametrize(
    "where, source, fault",
    [
        (None, "", None),
        (
            "workshop/registry",
            "#| export\nfrom samu.workshop.store import x",
            "samu.workshop.store is not below",
        ),
        ("workshop/store", "def f():\n    from samu.low import y", "samu.low is not below"),
        ("01_low", "%matplotlib inline\nfrom samu import high", "samu.high is not below"),
        ("01_low", "#| export\nfrom samu.low import x", "samu.low is not below"),
        ("02_high", "import samu.gone as g", "no notebook exports samu.gone"),
    ],
)
def test_planted_upward_imports(where, source, fault):
    tower = {name: notebook(*cells, *([source] if name == where else [])) for name, cells in TOWER.items()}
    assert [f.split(": ")[1] for f in house.upward_imports(tower)] == ([fault] if fault else [])


def lines(n, start=""):
    return start + "\n".join(f"x{i} = 1" for i in range(n))


EXPORT = "#| export\n"
FUNCTION = "def f(a, b=1):\n" + "\n".join(f"    a += {i}" for i in range(29)) + "\n"
USED = "def f(a, b=1):\n    return f(a)\n\ndef g():\n    return f(1, 2)\n\nx = g\nprint(x)\n"
PLANTED = [
    (house.tall_cells, {"01_x": notebook(lines(15), lines(20, EXPORT))}, 0),
    (house.tall_cells, {"01_x": notebook(lines(16), lines(21, EXPORT))}, 2),
    (house.tall_cells, {"01_x": notebook(*[lines(20, EXPORT)] * 11)}, 1),
    (house.tall_cells, {"workshop/x": notebook(lines(50))}, 0),
    (house.long_functions, {"m": FUNCTION}, 0),
    (house.long_functions, {"m": FUNCTION + "    return a\n"}, 1),
    (house.wide_lines, {"01_x": notebook("x" * 110)}, 0),
    (house.wide_lines, {"01_x": notebook("x" * 111)}, 1),
    (house.long_rows, {"01_x": notebook("a", "b", "c", None, "d")}, 0),
    (house.long_rows, {"01_x": notebook("a", "b", "c", "d", "e", None)}, 1),
    (
        house.late_results,
        {"02_residuals": notebook("register_forward_hook"), "05_forgetting": notebook("unlearn(x)")},
        0,
    ),
    (
        house.late_results,
        {
            "02_residuals": notebook(*"abcdefghij", "register_forward_hook"),
            "05_forgetting": notebook("def unlearn(x): pass"),
        },
        2,
    ),
    (house.too_large, {"m": "x = 1\n\n" * 4000}, 0),
    (house.too_large, {"m": "x = 1\n" * (house.LINES + 1), "n": "y" * house.CHARACTERS}, 2),
    (
        house.duplicates,
        {"m": FUNCTION, "n": FUNCTION.replace("a += 20", "a -= 20").replace("a += 5", "pass")},
        1,
    ),
    (house.duplicates, {"m": FUNCTION, "n": "def g(a):\n" + "\n".join(f"    a += {i}" for i in range(5))}, 0),
    (house.words_not_said, {"x": "an unknown name, a stand-in, the prior; mimetypes.guess_type"}, 0),
    (house.words_not_said, {"x": "Nobody knows the stranger_residual of a donor, we guess"}, 4),
]


@pytest.mark.parametrize("rule, planted, found", PLANTED)
def test_planted_faults(rule, planted, found):
    assert len(rule(planted)) == found


@pytest.mark.parametrize(
    "rule, text, elsewhere, faults",
    [
        (house.unused_definitions, USED, [], []),
        (house.unused_definitions, USED + "def h():\n    h()\n", [], ["samu.m: nothing uses h"]),
        (house.unused_definitions, USED + "def h():\n    h()\n", ["h()"], []),
        (house.unused_definitions, USED + "@metric(good='low')\ndef h(): pass\n", [], []),
        (house.unused_definitions, USED + "__all__ = ['y']\ny = 1\n", [], ["samu.m: nothing uses y"]),
        (house.unset_parameters, USED, [], []),
        (house.unset_parameters, USED.replace("f(1, 2)", "f(1)"), [], ["samu.m.f: nothing sets b"]),
        (house.unset_parameters, USED.replace("f(1, 2)", "f(1)"), ["f(1, b=3)"], []),
        (house.unset_parameters, USED.replace("f(1, 2)", "f(1)"), ["partial(f, b=3)"], []),
        (
            house.unset_parameters,
            "@dataclass\nclass C:\n    a: int\n    b: int = 1\n",
            [],
            ["samu.m.C: nothing sets b"],
        ),
        (
            house.unset_parameters,
            "@dataclass\nclass C:\n    a: int\n    b: int = 1\n",
            ["replace(c, b=2)"],
            [],
        ),
        (
            house.unset_parameters,
            "class C:\n    def f(self, a=1): pass\n",
            ["c.f()"],
            ["samu.m.f: nothing sets a"],
        ),
        (house.unset_parameters, "@app.command()\ndef f(a=1): pass\n", [], []),
    ],
)
def test_planted_waste(rule, text, elsewhere, faults):
    assert rule({"m": text}, elsewhere) == faults


def test_planted_needs_from_below():
    assert (
        house.used_too_early(
            notebook("def f(x):\n    y = g(x)\n    return y", "def g(x): return x", "y = f(1)")
        )
        == []
    )
    early = notebook("def f(x): return g(x)", "if not cached: y = f(1)", "def g(x): return h", "h = 2")
    assert house.used_too_early(early) == ["cell 2: g comes later"]


def stream(text, name="stdout"):
    return dict(output_type="stream", name=name, text=[text])


def shown(metadata=None, **data):
    data = {k.replace("_", "/"): v for k, v in data.items()}
    return dict(output_type="display_data", data=data, metadata=metadata or {})


@pytest.mark.parametrize(
    "output, fault",
    [
        (stream("50 % of 3 it, at samu/tmp/x and https://example.org/home/"), None),
        (shown({"image/png": {"alt": "Recall of five people, all at one."}}, image_png="L3RtcC8="), None),
        (shown(image_png="aGk=", text_plain="<Figure>"), "a figure without alt text"),
        (stream("loss 1", "stderr"), "stderr"),
        (dict(output_type="error", ename="E"), "an error"),
        (stream(" 10%|█    | 1/10 [00:01<00:09]"), "a progress bar"),
        (shown(text_plain="HBox(children=(FloatProgress(value=0.0)))"), "a progress bar"),
        (stream("saved in /tmp/abc/model"), "a path of some machine: /tmp/"),
        (shown(text_html="<td>'/root/.cache'</td>"), "a path of some machine: /root/"),
    ],
)
def test_planted_dirt(output, fault):
    nb = notebook("x")
    nb["cells"][0]["outputs"] = [output]
    assert house.unclean(nb, 1000) == ([f"cell 1: {fault}"] if fault else [])


def test_more_planted_dirt():
    nb = notebook("#| gpu\ntrain()") | dict(metadata={"widgets": {}})
    assert house.unclean(nb, 2_000_000) == [
        "metadata.widgets",
        "2,000,000 bytes",
        "cell 1: fails without a GPU in Run All Cells",
    ]


# --- The exported modules are those that the notebooks give, and nothing else


MADE = {"__pycache__", ".ipynb_checkpoints", "_modidx.py"}  # by Python, Jupyter and nbdev; git ignores them


def python_files(folder):
    "{name: content} of the Python files below a folder."
    found = [p for p in sorted(Path(folder).rglob("*.py")) if not MADE & set(p.parts)]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def out_of_sync(found, expected):
    "What differs between two such dictionaries."
    faults = [f"samu/{n}: no notebook exports it" for n in found.keys() - expected.keys()]
    faults += [f"samu/{n}: missing" for n in expected.keys() - found.keys()]
    return sorted(
        faults
        + [f"samu/{n}: edited by hand" for n in found.keys() & expected.keys() if found[n] != expected[n]]
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "Python files that the notebooks export, made in a copy of the project so that the tree stays as it is."
    copy = tmp_path_factory.mktemp("export")
    shutil.copy(ROOT / "settings.ini", copy)
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "images"))
    done = run(sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()", cwd=copy)
    assert done.returncode == 0, done.stderr
    return python_files(copy / "samu")


def test_modules_are_in_sync(exported):
    assert out_of_sync(python_files(ROOT / "samu"), exported) == []


def test_planted_differences():
    found, expected = {"a": b"1", "b": b"2", "orphan": b""}, {"a": b"1", "b": b"3", "gone": b""}
    assert out_of_sync(found, expected) == [
        "samu/b: edited by hand",
        "samu/gone: missing",
        "samu/orphan: no notebook exports it",
    ]


def untracked(root):
    "Files in samu/ and nbs/ that git does not know, ignored ones included; None if that cannot be told."
    if shutil.which("git") is None:
        return None
    top = run("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if top.returncode or Path(top.stdout.strip()).resolve() != Path(root).resolve():
        return None
    files = run("git", "-C", str(root), "ls-files", "--others", "-z", "--", "samu", "nbs").stdout.split("\0")
    return [f for f in files if f and not MADE & set(Path(f).parts)]


def test_git_tracks_every_file():
    found = untracked(ROOT)
    if found is None:
        pytest.skip("not the top of a git checkout")
    assert found == []


def test_planted_untracked_files(tmp_path):
    for name in "samu/known.py", "samu/new.py", "samu/__pycache__/known.pyc", "nbs/ignored.ipynb":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("ignored*\n")
    if run("git", "-C", str(tmp_path), "init", "-q").returncode:
        pytest.skip("git is not installed")
    run("git", "-C", str(tmp_path), "add", "samu/known.py")
    assert (
        sorted(untracked(tmp_path)) == ["nbs/ignored.ipynb", "samu/new.py"]
        and untracked(tmp_path / "samu") is None
    )


# --- README.md is the index


def test_readme_is_the_index():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == make_readme(ROOT), "nbs/index.ipynb has changed; run `make readme`"
    assert house.dead_links(readme, ROOT) == []


def test_links_between_notebooks():
    pages = {name: "\n".join(text for _, text in house.markdown(nb)) for name, nb in NOTEBOOKS.items()}
    assert [
        (n, link) for n, text in pages.items() for link in house.dead_links(text, (ROOT / "nbs" / n).parent)
    ] == []


def test_readme_from_a_small_index(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    def result(text, **data):
        return [new_output("execute_result", {"text/plain": text, **data})]

    cells = [
        new_markdown_cell("# samu\n\n![picture](images/a.png) [chapter](00_a.ipynb#top) [gone](b.ipynb)"),
        new_code_cell("#| hide\nhidden = 1"),
        new_code_cell("#| echo: false\nunseen()", outputs=result("seen")),
        new_code_cell(
            "#| eval: false\nshown()",
            outputs=result("t", **{"text/html": "<style>\n x\n</style>\n<table></table>"}),
        ),
    ]
    (tmp_path / "nbs" / "images").mkdir(parents=True)
    for name in "images/a.png", "00_a.ipynb":
        (tmp_path / "nbs" / name).touch()
    nbformat.write(new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    text = make_readme(tmp_path)
    assert text.split("-->\n\n")[1] == (
        "# samu\n\n![picture](nbs/images/a.png) [chapter](nbs/00_a.ipynb#top) [gone](b.ipynb)"
        "\n\n    seen\n\n```python\nshown()\n```\n\n<table></table>\n"
    )
    assert house.dead_links(text, tmp_path) == ["b.ipynb"]
    cells[2].outputs = result("x", **{"image/png": "aGk="})
    nbformat.write(new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    with pytest.raises(ValueError, match="stores a picture"):
        make_readme(tmp_path)


# --- What other tools see


def test_ruff():
    done = run(sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy(tmp_path):
    done = run(sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "fault, code",
    [
        ("x = 1; y = 2", "E702"),
        ("if x: y = 2", "E701"),
        ("f = lambda: 1", "E731"),
        ("import json", "F401"),
        ("def f():\n    x = 1", "F841"),
        ("x = 'a'" + " " * 110, "E501"),
        ("try:\n    f()\nexcept Exception:\n    pass", "BLE001"),
    ],
)
def test_planted_faults_are_seen_by_ruff(tmp_path, fault, code):
    (tmp_path / "m.py").write_text(fault + "\n")
    done = run(
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--config",
        str(ROOT / "ruff.toml"),
        str(tmp_path / "m.py"),
    )
    assert code in done.stdout


def test_planted_faults_are_seen_by_mypy(tmp_path):
    (tmp_path / "m.py").write_text("def f(x):\n    return x\n\ndef g() -> int:\n    return 'a'\n")
    done = run(
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "mypy.ini"),
        str(tmp_path / "m.py"),
        cwd=tmp_path,
    )
    assert "no-untyped-def" in done.stdout and "return-value" in done.stdout


# --- What is installed with the package


def distribution(text):
    "The normalised name of the distribution in a requirement."
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower()


def test_requirements_are_what_the_package_imports():
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    lists = {
        k: {distribution(r) for r in v.split()}
        for k, v in parser["DEFAULT"].items()
        if k.endswith("requirements")
    }
    core, extras = (
        lists.pop("requirements"),
        set().union(*(v for k, v in lists.items() if k != "dev_requirements")),
    )
    known, needed, lazy = packages_distributions(), set(), set()
    for package, at_once in house.third_party(MODULES).items():
        if package not in sys.stdlib_module_names and package != "samu":
            (needed if at_once else lazy).add(distribution(known.get(package, [package])[0]))
    assert needed <= core, "imported with the package, but not required"
    assert lazy <= core | extras, "imported by a function, but in no list"
    assert core <= needed | lazy, "required, but imported nowhere"


def test_no_file_of_another_build_tool():
    assert not (ROOT / "pyproject.toml").exists()
    assert (ROOT / "samu" / "py.typed").is_file()
