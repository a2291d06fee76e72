"""The site: its checker finds planted faults, its reference says what the modules say, its Colab cell does
nothing elsewhere, and the built site, where there is one, is whole and can be crossed in two clicks.
"""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import api_pages  # noqa: E402
import build_site  # noqa: E402
import check_site  # noqa: E402

SITE = ROOT / "_docs"
built = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="the site is not built; run make docs")


# --- The checker

WHOLE = {
    "index.html": '<h1 id="top">A</h1><a href="sub/b.html#place">b</a><a href="https://example.org">out</a>',
    "sub/b.html": '<a name="place"></a><a href="../index.html">a</a><a href="#place">here</a><img src="../x.svg">',
    "x.svg": "<svg/>",
    "a.css": "/* url(https://example.org/x) */ body { background: url(x.svg) }",
}


def site(folder, **more):
    for name, text in {**WHOLE, **{k.replace("__", "/").replace("_html", ".html"): v for k, v in more.items()}}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_whole_site_has_no_fault(tmp_path):
    assert check_site.faults(site(tmp_path)) == []


@pytest.mark.parametrize(
    "text, fault",
    [
        ('<a href="gone.html">', "c.html: no file gone.html"),
        ('<a href="index.html#gone">', "c.html: no place index.html#gone"),
        ('<a href="#gone">', "c.html: no place #gone"),
        ('<img src="gone.png">', "c.html: no file gone.png"),
        ('<script src="https://example.org/x.js"></script>', "c.html: fetches https://example.org/x.js"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "c.html: fetches //example.org/x.css"),
        ('<img srcset="https://example.org/x.png 2x">', "c.html: fetches https://example.org/x.png"),
        ('<p style="background: url(https://example.org/x)">', "c.html: fetches background: url(https://example.org/x)"),
    ],
)
def test_planted_faults_are_found(tmp_path, text, fault):
    assert check_site.faults(site(tmp_path, c_html=text)) == [fault]


def test_a_font_from_elsewhere_is_found(tmp_path):
    (site(tmp_path) / "b.css").write_text("@font-face { src: url('https://example.org/x.woff2') }")
    assert check_site.faults(tmp_path) == ["b.css: fetches a style or a font"]


def test_clicks(tmp_path):
    pages = check_site.read_pages(site(tmp_path, d_html="", c_html='<a href="d.html">'))
    assert check_site.clicks(pages) == {"index.html": 0, "sub/b.html": 1, "sub/b.html#place": 1}


# --- The reference

MODULE = '''"""What it is for."""

# %% auto #0
__all__ = ['f', 'C']

# %% ../nbs/01_x.ipynb #abc123
@dataclass
class C:
    "A thing."
    size: int = 3  # of it, metres

    def grow(
        self,
        by: "Thing | None" = None,  # how much <b>
    ) -> float:    # the size
        "Make it larger."

# %% ../nbs/01_x.ipynb #def456
def f(
    a: int,        # how many | at most
    *,
    b: str = "x",  # which
) -> list[str]:    # names
    "Do it. Raises UserError."

def hidden(): pass
'''


def test_reference_of_a_module():
    page = api_pages.module_page("samu.x", MODULE)
    for part in (
        "# samu.x\n\nWhat it is for.",
        "f(a: int, *, b: str = 'x') -> list[str]",
        "| `a` | `int` |  | how many \\| at most |",
        "| `b` | `str` | `'x'` | which |",
        "| `returns` | `list[str]` |  | names |",
        "| `size` | `int` | `3` | of it, metres |",
        "| `by` | `Thing \\| None` | `None` | how much &lt;b&gt; |",
        "Do it. Raises UserError.",
        '<a id="samu.x.f"></a>',
        '<a href="../01_x.html#def456">Source: 01_x</a>',
        '<a href="../01_x.html#abc123">Source: 01_x</a>',
    ):
        assert part in page, part
    assert "hidden" not in page


def test_reference_holds_every_public_definition():
    pages = api_pages.reference(ROOT)
    assert "](samu.forgetting.md)" in pages["api/samu"] and '<a id="samu.unlearn"></a>' in pages["api/samu"]
    assert "| `target` | `str \\| Sequence[str]` |  | who is to be forgotten; one name or several |" in pages["api/samu"]
    for path in (ROOT / "samu").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        lists = [ast.literal_eval(n.value) for n in tree.body if api_pages.assigns(n, "__all__")]
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        own = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        missing = [n for n in (lists or [[]])[0] if n in own and f'id="{module}.{n}"' not in pages[f"api/{module}"]]
        assert missing == [], module


# --- Copies of the notebooks


def test_colab_cell_does_nothing_elsewhere(monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell, asked = InteractiveShell(config=Config(HistoryManager=dict(enabled=False))), []
    monkeypatch.setattr(shell, "system", asked.append)
    monkeypatch.setattr(shell, "run_line_magic", lambda name, line, **k: asked.append(f"%{name} {line}"))
    cell = build_site.colab_cell("https://github.com/them/samu")
    assert shell.run_cell(cell).success and asked == []
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert shell.run_cell(cell).success
    assert asked[0] == "git clone -q --depth 1 https://github.com/them/samu /content/samu"
    assert asked[1].startswith("%pip install") and asked[2].startswith("%cd")


def test_colab_address():
    address = build_site.colab_address("https://github.com/them/samu.git", "04_latents")
    assert address == "https://colab.research.google.com/github/them/samu/blob/gh-pages/_sources/04_latents.ipynb"
    assert "OWNER/REPOSITORY" in build_site.colab_address("https://example.org/samu", "x")


def test_copied_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "SOURCE", tmp_path / "out")
    cells = [new_markdown_cell("# 01 X"), new_code_cell("#| default_exp x"), new_code_cell("#| export\ndef f(): pass")]
    cells += [new_code_cell("#| hide\nsecret = 1"), new_code_cell("#| echo: false\nshow()")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_x.ipynb")
    build_site.copy_notebook(tmp_path / "01_x.ipynb", "01_x", "https://github.com/them/samu")
    copied = nbformat.read(tmp_path / "out" / "01_x.ipynb", as_version=4).cells
    assert [c.source.split("\n")[0] for c in copied[3:]] == [f'<a id="{cells[2].id}"></a>', "def f(): pass", "show()"]
    assert copied[0].source == "# 01 X" and "colab.svg" in copied[1].source and "google.colab" in copied[2].source
    assert copied[5].metadata.tags == ["remove-input"]


# --- The site that is built


@built
def test_built_site_is_whole():
    assert check_site.faults(SITE) == []


@built
def test_two_clicks_from_the_first_page():
    reached = check_site.clicks(check_site.read_pages(SITE))
    wanted = ["install.html", "install.html#run", "04_latents.html", "api/samu.html#unlearn"]
    wanted += [p.relative_to(SITE).as_posix() for folder in ("teaching", "exercises") for p in SITE.glob(f"{folder}/*.html")]
    assert [w for w in wanted if w not in reached] == []


@built
def test_every_chapter_has_a_badge_and_the_colab_cell():
    for path in sorted(SITE.glob("[0-9][0-9]_*.html")):
        text = path.read_text("utf-8")
        assert "colab.svg" in text and "On Colab" in text, path.name
        assert "google.colab" in (SITE / "_sources" / f"{path.stem}.ipynb").read_text("utf-8")


@built
def test_pages_of_audits_open_from_their_chapter():
    text = (SITE / "12_your_model.html").read_text("utf-8")
    for name in ("audit_invented", "audit_real"):
        [link] = re.findall(rf'<a [^>]*href="([^"]+/{name}\.html)"', text)
        assert (SITE / link).is_file() and f'download="" href="{link}"' not in text


@built
def test_the_protocol_is_a_page():
    assert 'href="results/protocol.html"' in (SITE / "10_real_people.html").read_text("utf-8")
