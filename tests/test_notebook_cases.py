"The bridge from notebooks to pytest, tried on small notebooks with known faults."
import json, os, subprocess, sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

IMPORTS = "from fastcore.test import test_eq, test_fail"
NOTEBOOKS = {  # name -> cells; None stands for a markdown cell
    "a_good": [None, IMPORTS, "log = open('../ran.txt', 'a')\ndef ran(n): print(n, file=log, flush=True)\nran(1)",
               "ran(2)\nx = 1 + 1", "test_eq(x, 2)\nran(3)", "#| eval: false\nraise RuntimeError('must not run')",
               "#| never\nraise RuntimeError('must not run either')", "ran(4)", "test_fail(lambda: 1 / 0, contains='zero')", "ran(5)"],
    "b_wrong": [IMPORTS, None, "def total(numbers):\n    return sum(numbers) + 1", "# What is the sum?\ntest_eq(total([]), 1)\ntest_eq(total([1, 2]), 3)",
                "#| hide\n\n# Fine\ntest_eq(total([]), 1)", "def third(): test_eq(total((3,)), 99)\nprint('about to fail')\nthird()"],
    "c_broken": [IMPORTS, "test_eq(1, 1)", "values = {}\nvalue = values['absent']", "test_eq(2, 2)", "test_eq(3, 3)"],
    "d_broken_end": [IMPORTS, "test_eq(1, 1)", "def inner(): return undefined_name\ninner()"],
    "e_syntax": ["x = = 1"],
    "f_leaks": [IMPORTS, "import os, random, warnings, matplotlib.pyplot as plt, torch\nfirst = random.random(), torch.rand(1).item()",
                "torch.set_grad_enabled(False); torch.set_default_dtype(torch.float64); plt.rcParams['lines.linewidth'] = 99.\n"
                "plt.figure(); os.environ['LEAKED'] = 'yes'; os.chdir('..'); random.seed(5); warnings.simplefilter('error')\n"
                "from pathlib import Path; Path('first.txt').write_text(repr(first))", "test_eq(os.getcwd().endswith('nbs'), False)"],
    "g_after": [IMPORTS, "import os, random, warnings, matplotlib.pyplot as plt, torch\nfirst = random.random(), torch.rand(1).item()",
                "test_eq(torch.is_grad_enabled(), True)", "test_eq(torch.get_default_dtype(), torch.float32)",
                "test_eq(plt.rcParams['lines.linewidth'], 1.5)\ntest_eq(plt.get_fignums(), [])", "test_eq(os.environ.get('LEAKED'), None)",
                "test_eq(os.path.basename(os.getcwd()), 'nbs')", "from pathlib import Path\ntest_eq(Path('../first.txt').read_text(), repr(first))", "warnings.warn('harmless')"],
    "h_plots": [IMPORTS, "%matplotlib inline\nimport matplotlib.pyplot as plt, pickle\nclass Here: pass",
                "plt.plot([1, 2]); plt.show()\ntest_eq(type(pickle.loads(pickle.dumps(Here()))), Here)", "!echo a shell command"],
}

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A project with those notebooks."
    root = tmp_path_factory.mktemp("project")
    (root / "settings.ini").write_text("[DEFAULT]\nnbs_path = nbs\ntst_flags = gpu never\n")
    (root / "nbs").mkdir()
    for name, cells in NOTEBOOKS.items():
        cells = [dict(cell_type="markdown", source="text") if c is None else dict(cell_type="code", source=c.splitlines(True)) for c in cells]
        (root / "nbs" / f"{name}.ipynb").write_text(json.dumps(dict(cells=cells)))
    return root

def run(root, *args):
    "Runs pytest there: {(notebook, case): (outcome, text)}."
    environ = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTEST_ADDOPTS")}
    environ |= dict(PYTHONPATH=str(Path(__file__).parent), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "notebook_cases", "-p", "no:cacheprovider", "--rootdir", ".", "--junitxml=out.xml"]
    (root / "ran.txt").unlink(missing_ok=True)
    done = subprocess.run([*command, *args], cwd=root, env=environ, capture_output=True, text=True, timeout=120)
    if not done.stdout.strip(): return done.stderr
    outcomes = {}
    for case in ElementTree.parse(root / "out.xml").iter("testcase"):
        fault = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        text = "" if fault is None else f"{fault.get('message')}\n{fault.text}"
        outcomes[case.get("classname").split(".")[-2], case.get("name")] = "passed" if fault is None else fault.tag, text
    return outcomes

@pytest.fixture(scope="module")
def outcomes(folder): return run(folder, "nbs")

def of(outcomes, notebook): return {case: outcome for (name, case), (outcome, _) in outcomes.items() if name == notebook}

def test_good_notebook(folder, outcomes):
    assert of(outcomes, "a_good") == {
        "cell 5: test_eq(x, 2)": "passed", "cell 7: raise RuntimeError('must not run either')": "skipped",
        "cell 9: test_fail(lambda: 1 / 0, contains='zero')": "passed", "rest of the notebook": "passed"}
    assert "'never' is in tst_flags" in outcomes["a_good", "cell 7: raise RuntimeError('must not run either')"][1]

def test_wrong_value(outcomes):
    assert of(outcomes, "b_wrong") == {
        "cell 4: # What is the sum?": "failure", "cell 5: # Fine": "passed",
        "cell 6: def third(): test_eq(total((3,)), 99)": "failure", "rest of the notebook": "passed"}
    text = outcomes["b_wrong", "cell 4: # What is the sum?"][1]
    assert "b_wrong.ipynb, cell 4 (code cell 3)" in text
    assert ">   3 test_eq(total([1, 2]), 3)" in text
    assert "AssertionError: ==:\n4\n3" in text
    text = outcomes["b_wrong", "cell 6: def third(): test_eq(total((3,)), 99)"][1]
    assert ">   3 third()" in text and "in third (this notebook, line 1): def third()" in text and "about to fail" in text

def test_broken_cell_is_shown_by_the_next_check(outcomes):
    assert of(outcomes, "c_broken") == {"cell 2: test_eq(1, 1)": "passed", "cell 4: test_eq(2, 2)": "failure",
                                        "cell 5: test_eq(3, 3)": "skipped", "rest of the notebook": "skipped"}
    text = outcomes["c_broken", "cell 4: test_eq(2, 2)"][1]
    assert "c_broken.ipynb, cell 3" in text and ">   2 value = values['absent']" in text and "KeyError: 'absent'" in text
    assert "not reached: cell 3 failed" in outcomes["c_broken", "cell 5: test_eq(3, 3)"][1]

def test_broken_cell_below_the_last_check(outcomes):
    assert of(outcomes, "d_broken_end") == {"cell 2: test_eq(1, 1)": "passed", "rest of the notebook": "failure"}
    text = outcomes["d_broken_end", "rest of the notebook"][1]
    assert "cell 3" in text and "in inner (this notebook, line 1)" in text and "NameError" in text

def test_cell_that_is_no_python(outcomes):
    assert of(outcomes, "e_syntax") == {"rest of the notebook": "failure"}
    text = outcomes["e_syntax", "rest of the notebook"][1]
    assert ">   1 x = = 1" in text and "SyntaxError" in text

def test_nothing_leaks_into_the_next_notebook(outcomes):
    assert set(of(outcomes, "f_leaks").values()) == {"passed"}
    assert set(of(outcomes, "g_after").values()) == {"passed"} and len(of(outcomes, "g_after")) == 7

def test_plots_pickles_and_magics(outcomes):
    assert list(of(outcomes, "h_plots").values()) == ["passed", "passed"]

def test_one_case_runs_what_it_needs(folder):
    assert of(run(folder, "nbs/a_good.ipynb::cell 5: test_eq(x, 2)"), "a_good") == {"cell 5: test_eq(x, 2)": "passed"}
    assert (folder / "ran.txt").read_text().split() == ["1", "2", "3"]

def test_notebooks_are_picked_by_prefix(folder):
    (folder / "test_other.py").write_text("def test_other(): pass")
    outcomes = run(folder, "--notebooks", "a_,c_")
    assert {name for name, _ in outcomes} == {"a_good", "c_broken"}
    assert (folder / "ran.txt").read_text().split() == ["1", "2", "3", "4", "5"]  # each cell once
    assert "no notebook in nbs/ begins with 'zz'" in run(folder, "--notebooks", "zz")
