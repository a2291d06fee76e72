"The bridge from notebooks to pytest, tried on small notebooks with known faults."

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

IMPORTS = "from fastcore.test import test_eq, test_fail"
NOTEBOOKS = {  # name -> cells; None stands for a markdown cell
    "a_good": [
        None,
        IMPORTS,
        "x = 1 + 1",
        "test_eq(x, 2)",
        "#| eval: false\nraise RuntimeError('must not run')",
        "#| gpu\nimport torch\ntest_eq(torch.cuda.is_available(), True)",
        "!echo a shell command",
        "import pickle\nclass Here: pass\ntest_eq(type(pickle.loads(pickle.dumps(Here()))), Here)",
        "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    ],
    "b_wrong": [
        IMPORTS,
        None,
        "def total(numbers):\n    return sum(numbers) + 1",
        "# What is the sum?\ntest_eq(total([]), 1)\ntest_eq(total([1, 2]), 3)",
        "def third():\n    test_eq(total((3,)), 99)\nprint('about to fail')\nthird()",
        "raise RuntimeError('must not be reached')",
    ],
    "c_syntax": ["x = = 1"],
    "d_ends": ["import os", "os._exit(3)"],
    "e_leaks": [
        IMPORTS,
        "import os, random, torch",
        "torch.set_grad_enabled(False)\nos.environ['LEAKED'] = 'yes'",
    ],
    "f_after": [
        IMPORTS,
        "import os, torch",
        "test_eq(torch.is_grad_enabled(), True)",
        "test_eq(os.environ.get('LEAKED'), None)",
        "test_eq(os.path.basename(os.getcwd()), 'nbs')",
    ],
}


def code(source):
    return dict(cell_type="code", source=source.splitlines(True))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    "Runs pytest on a project with those notebooks: {name: (outcome, text)}."
    root = tmp_path_factory.mktemp("project")
    (root / "nbs").mkdir()
    for name, cells in NOTEBOOKS.items():
        cells = [dict(cell_type="markdown", source="text") if c is None else code(c) for c in cells]
        (root / "nbs" / f"{name}.ipynb").write_text(json.dumps(dict(cells=cells)))
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("IN_TEST", "PYTEST_"))}
    environ |= dict(PYTHONPATH=str(Path(__file__).parent), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "notebook_cases",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        ".",
        "--junitxml=out.xml",
        "nbs",
    ]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip(), done.stderr
    found = {"printed": ("", done.stdout)}
    for case in ElementTree.parse(root / "out.xml").iter("testcase"):
        fault = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        text = "" if fault is None else f"{fault.get('message')}\n{fault.text}"
        found[case.get("classname").split(".")[1]] = ("passed" if fault is None else fault.tag, text)
    return found


def test_good_notebooks_pass(outcomes):
    assert {n: o for n, (o, _) in outcomes.items() if n[0] in "aef"} == {
        "a_good": "passed",
        "e_leaks": "passed",
        "f_after": "passed",
    }


def test_cells_that_were_not_run_are_named(outcomes):
    import torch

    if torch.cuda.is_available():
        pytest.skip("the cell runs here")
    assert "a_good.ipynb: 1 cells; needs a CUDA GPU" in outcomes["printed"][1]


def test_a_wrong_value_shows_file_cell_line_and_both_values(outcomes):
    outcome, text = outcomes["b_wrong"]
    assert outcome == "failure"
    for part in (
        "b_wrong.ipynb, cell 4",
        ">   3 test_eq(total([1, 2]), 3)",
        "AssertionError: ==:\n4\n3",
        "b_wrong.ipynb, cell 5",
        ">   4 third()",
        "in third (this notebook, line 2)",
        "about to fail",
    ):
        assert part in text, (part, text)
    assert "must not be reached" not in text


@pytest.mark.parametrize(
    "name, parts",
    [("c_syntax", [">   1 x = = 1", "SyntaxError"]), ("d_ends", ["d_ends.ipynb, cell 2: the process ended"])],
)
def test_a_broken_notebook_fails(outcomes, name, parts):
    outcome, text = outcomes[name]
    assert outcome == "failure" and all(part in text for part in parts), text
