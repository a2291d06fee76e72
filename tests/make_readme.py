"""Writes README.md from nbs/index.ipynb.

Left out: cells with `#| hide` or `#| include: false`, the code of cells with `#| echo: false`, the
outputs of cells with `#| output: false`, and all lines that begin with `#|`. Links and pictures are
given in the notebook as seen from nbs/ (`images/x.png`, `02_saes.ipynb`), so that they work in Jupyter;
README.md gets them as seen from the repository.
"""

import posixpath
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from notebook_cases import directives

ROOT = Path(__file__).resolve().parent.parent
HEADER = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"
LINK = re.compile(
    r"""(\]\(|\b(?:src|href)=")([^\s)"#]+)"""
)  # what follows `](`, `src="` and `href="`, up to any #


def is_off(found, name):
    return found.get(name, "").lower() == "false"


def from_repository(text, root):
    "Text whose relative links are seen from the repository instead of from nbs/, where such a file exists."

    def moved(match):
        target = posixpath.normpath(posixpath.join("nbs", match[2]))
        local = (
            not re.match(r"[a-z]+:|/", match[2]) and not target.startswith("..") and (root / target).exists()
        )
        return match[1] + (target if local else match[2])

    return LINK.sub(moved, text)


def prepare(cell, found):
    "A code cell as the README shows it, in place. Raises ValueError if it stores a picture."
    cell.source = re.sub(r"^\s*#\s*\|.*\n?", "", cell.source, flags=re.M).strip("\n")
    cell.metadata["transient"] = dict(remove_source=is_off(found, "echo") or not cell.source)
    if is_off(found, "output"):
        cell.outputs = []
    for output in cell.outputs:
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            raise ValueError(
                "nbs/index.ipynb stores a picture; put it in nbs/images/ and show it in Markdown"
            )
        for kind in ("text/html", "text/markdown"):  # pandas sends a style sheet with each table
            if kind in data:
                data[kind] = re.sub(r"<style.*?</style>\s*", "", data[kind], flags=re.S)


def make_readme(root=ROOT):
    "The text of README.md."
    notebook = nbformat.read(Path(root) / "nbs" / "index.ipynb", as_version=4)
    kept = []
    for cell in notebook.cells:
        found = directives(cell.source)
        if cell.cell_type == "raw" or "hide" in found or is_off(found, "include"):
            continue
        if cell.cell_type == "code":
            prepare(cell, found)
        kept.append(cell)
    notebook.cells = kept
    notebook.metadata["language_info"] = dict(name="python")  # names the language of the code blocks
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.M)).strip() + "\n"
    return HEADER + from_repository(text, Path(root))


if __name__ == "__main__":
    (ROOT / "README.md").write_text(make_readme(), encoding="utf-8")
