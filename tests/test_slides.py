"""Slides: as many as the rule says, nothing from elsewhere, nothing of the text lost."""

import re
import sys

import nbformat
import pytest
from house import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

sys.path.insert(0, str(ROOT / "docs"))
import slides  # noqa: E402

PICTURE = new_output("display_data", {"image/png": "aGk=\n"}, metadata={"image/png": {"alt": "Two < three dots."}})
LONG = "\n".join(f"x = {i}" for i in range(16))


def planted():
    "A notebook whose slides can be counted by hand."
    return new_notebook(cells=[
        new_markdown_cell("# 99 Planted\n\n> A line below."),  # 1
        new_code_cell("#| default_exp planted"),
        new_code_cell("import json"),
        new_markdown_cell("## One\n\nA sentence with $x_1$ in it. And all that follows it here, which is folded "
                          "until somebody asks for it.\n\n## Two\n\n$$\\frac{a}{b}$$"),  # 2, 3
        new_code_cell("#| export\ndef f():\n    return 1", outputs=[new_output("stream", text="printed")]),
        new_code_cell("f()", outputs=[PICTURE]),  # 4: the picture alone
        new_code_cell(LONG),
        new_markdown_cell("More, with [a chapter](03_saes.ipynb) and [a file](results/x.csv)."),  # 5
        new_code_cell("assert f() == 1\ntest_eq(f(), 1)"),
        new_markdown_cell("**Predict.** What is 1 + 1?"),  # 6
        new_code_cell("print(1 + 1)", outputs=[new_output("stream", text="two")]),  # 7
        new_markdown_cell("## Quiz\n\n**1.** Why?\n\n- **a** So.\n\n**2.** And?\n\n- **a** No."),  # 8 with the heading, 9
    ])


def test_slides_are_those_of_the_rule():
    found = slides.slides(planted())
    assert [h for h, _ in found] == ["# 99 Planted", "## One", *["## Two"] * 5, *["## Quiz"] * 2]
    page = slides.deck(planted())
    assert page.count("<section>") == len(found) == 9
    assert "Predict" in found[5][1][0] and "two" not in "".join(found[5][1]) and "two" in "".join(found[6][1])
    assert "test_eq" not in page and "assert" not in page
    assert "x = 3" not in page and "f()" not in page.replace("def f()", "") and "import json" not in page and "default_exp" not in page
    assert "printed" in page and "#| export" not in page
    assert '<img alt="Two &lt; three dots." src="data:image/png;base64,aGk=">' in page


def test_the_rest_of_a_paragraph_is_folded():
    page = slides.deck(planted())
    assert re.search(r"<summary>A sentence with <math.*</math> in it\.</summary>\s*<p>And all that", page)
    assert "<mfrac>" in page and "$" not in page
    assert 'href="03_saes.html"' in page and "a file" in page and "x.csv" not in page


CHAPTERS = sorted(p.stem for p in (ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_deck_needs_nothing_else(name):
    notebook = nbformat.read(ROOT / "nbs" / f"{name}.ipynb", as_version=4)
    page = slides.deck(notebook)
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    headings = re.findall(r"^##? ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    assert page.count("<section>") >= len(headings) >= 5
    assert not re.search(r"<script|<link|@import|<iframe|src=\"(?!data:)|url\(", page)
    pictures = sum("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))
    assert page.count("<img") >= pictures


def test_command_writes_decks(tmp_path, capsys):
    slides.main(["00"], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00_one_page.html", "index.html"]
    assert re.search(r"00_one_page: \d+ slides", capsys.readouterr().out)
