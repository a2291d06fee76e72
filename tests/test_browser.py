"""Real JupyterLab and a real Chromium: notebooks run from top to bottom, and each kind of widget is moved by
keyboard. No JavaScript error, and no request to another machine; what is broken on purpose must be found.

Chapters 00 and 14 and one workshop notebook are run. More: SAMU_BROWSER=all, or beginnings of names
separated by commas, such as SAMU_BROWSER=04,05. SAMU_SCREENSHOTS=FOLDER keeps a picture of everything.
Where there is no Chromium, all of this is skipped. Uses the biographies.
"""

import json
import os
import re
from pathlib import Path

import browser_tools as tools
import pytest

FOUND, REASON = tools.chromium()
pytestmark = pytest.mark.skipif(FOUND is None, reason=REASON)

DEFAULT = ["14_explore", "00_one_page", "workshop/explore"]  # the longest first: each goes to the worker that is free
WIDGETS = {  # notebook -> explorer, control, kind, keys
    "14_explore": [
        ("walk", "step", "slider", ["ArrowRight"] * 3),
        ("text", "text", "text", ["Control+a", "<b>Gita Sabin</b> is", "Enter"]),
        ("cut", "cut", "slider", ["ArrowRight"] * 4),
        ("price", "weight", "slider", ["End"]),
        ("models", "name", "slider", ["ArrowRight"]),
        ("models", "attribute", "slider", ["ArrowRight"]),
        ("race", "step", "slider", ["ArrowLeft"] * 3),
        ("race", "facts", "slider", ["ArrowRight"]),
    ],
    "workshop/explore": [("power", "exponent", "slider", ["ArrowRight"]), ("power", "name", "text", ["!", "Enter"])],
}


def chosen():
    "The notebooks that are run."
    names = [p.relative_to(tools.ROOT / "nbs").with_suffix("").as_posix() for p in (tools.ROOT / "nbs").rglob("*.ipynb")]
    wish = os.environ.get("SAMU_BROWSER", "")
    if not wish:
        return [n for n in DEFAULT if n in names]
    return sorted(n for n in names if wish == "all" or n.startswith(tuple(wish.split(","))))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    tools.copy_notebooks(folder / "nbs")
    for name, source in CONTROLS.items():
        write_notebook(folder / "nbs" / f"{name}.ipynb", source)
    with tools.jupyterlab(folder) as address:
        yield address


def keep_widget(page, name):
    folder = os.environ.get("SAMU_SCREENSHOTS")
    if folder:
        box = page.locator(f".samu-{name}-picture").last.locator("xpath=..")
        box.scroll_into_view_if_needed()
        Path(folder).mkdir(parents=True, exist_ok=True)
        box.screenshot(path=Path(folder) / f"widget-{name}.png")


def write_notebook(path, *sources):
    cells = [dict(cell_type="code", source=s, outputs=[], metadata={}, execution_count=None) for s in sources]
    kernel = dict(kernelspec=dict(name="python3", display_name="python3"))
    path.write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=4)), "utf-8")


# --- Notebooks in JupyterLab


@pytest.mark.parametrize("name", chosen())
def test_notebook(name, lab, watched):
    assert tools.run_all(watched, lab(name), seconds=600) == []
    for explorer, control, kind, keys in WIDGETS.get(name, ()):
        tools.moved(watched.page, explorer, control, kind, keys)
        keep_widget(watched.page, explorer)
    tools.keep(watched.page, f"lab-{name}", whole=False)
    assert watched.faults() == []


def test_typed_text_is_not_run(lab, watched):
    assert tools.run_all(watched, lab("echo")) == []
    page = watched.page
    tools.moved(page, "echo", "text", "text", ["<img src=x onerror=document.title='run'>", "Enter"])
    assert "<img src=x" in page.locator(".samu-echo-sentence").last.inner_text()
    assert page.locator(".samu-echo-sentence img").count() == 0 and page.title() != "run"
    assert watched.faults() == []


# --- Negative controls: what is broken is found

START = """import ipywidgets as widgets
from samu.workshop.explore import explorer
from samu.workshop.plots import figure
"""
CONTROLS = {
    "ignores": START
    + """
def view(x):
    fig, [ax] = figure("Always the same", "0", "x", "y")
    return fig, f"x is {x}"
made = explorer("ignores", view, 300, x=widgets.IntSlider(1, 0, 5))
made.box
""",
    "raises": START
    + """
def view(x):
    fig, [ax] = figure("A line", "2", "x", "y")
    ax.plot([0, 1], [0, 1 / (2 - x)])
    return fig, f"x is {x}"
made = explorer("raises", view, 300, x=widgets.IntSlider(1, 0, 5))
made.box
""",
    "echo": START
    + """
def view(text):
    fig, [ax] = figure(text or "nothing", "0", "x", "y")
    return fig, text
made = explorer("echo", view, 300, text=widgets.Text("hello", continuous_update=False))
made.box
""",
    "stops": "1 / 0",
    "throws": "from IPython.display import Javascript\nJavascript('setTimeout(() => { undefined_thing(); })')",
    "fetches": "from IPython.display import HTML\nHTML('<img src=\"https://example.org/x.png\">')",
}


@pytest.mark.parametrize("name, what", [("ignores", "the picture ignores x"), ("raises", "the picture ignores x")])
def test_a_broken_widget_is_found(name, what, lab, watched):
    assert tools.run_all(watched, lab(name)) == []
    with pytest.raises(AssertionError, match=what):
        tools.moved(watched.page, name, "x", "slider", ["ArrowRight"], seconds=6)


def test_a_failing_cell_is_found(lab, watched):
    assert tools.run_all(watched, lab("stops")) == ["cell 1: ZeroDivisionError: division by zero"]


@pytest.mark.parametrize("name, what", [("throws", "undefined_thing"), ("fetches", "asks https://example.org/x.png")])
def test_errors_and_requests_are_found(name, what, lab, watched):
    assert tools.run_all(watched, lab(name)) == []
    watched.page.wait_for_timeout(500)
    assert any(what in fault for fault in watched.faults())


def test_no_chromium_is_said(monkeypatch):
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    monkeypatch.delenv("SAMU_CHROMIUM", raising=False)
    path, reason = tools.chromium.__wrapped__()
    assert path is None and re.search("install the Debian package chromium|pip install playwright", reason)
