"""Slides of the chapters in _slides: `python docs/slides.py [NUMBER...]`, such as `03 05`; all without one.

Each deck is one HTML file that needs nothing else: no script, no font, no network. A slide begins at each
`##` heading, at each cell of text below it and at a second cell of code; a picture has a slide of its own,
and so has each question of a quiz. What follows a question to predict is on the next slide. Of a paragraph
the first sentence is shown; a click unfolds the rest. Code of more than 15 lines, code that draws and cells
that only import or test are left out. Notebooks are not run: slides show the outputs that are stored.
"""

import ast
import html
import re
import sys
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parent.parent
OUT, LINES = ROOT / "_slides", 15
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|include:\s*false)|nbdev_export\(", re.M)
SENTENCE = re.compile(r"(?<=[a-z0-9)*`$\]][.?!:])\s+(?=[A-Z*`\"(])")
QUESTION = re.compile(r"\n\n(?=\*\*\d+\.\*\* )")

STYLE = """
html { scroll-snap-type: y mandatory; font: 20px/1.45 system-ui, sans-serif; color: #111; background: #fff }
body { margin: 0; counter-reset: slide }
section { scroll-snap-align: start; min-height: 100vh; box-sizing: border-box; padding: 4vh 8vw;
  position: relative; display: flex; flex-direction: column; justify-content: center;
  counter-increment: slide; break-after: page }
section::after { content: counter(slide); position: absolute; right: 2vw; bottom: 2vh; color: #555;
  font-size: 14px }
section > * { max-width: 1100px }
h1 { font-size: 2.2em } h2 { font-size: 1.4em; margin: 0 0 .5em; color: #0072b2 }
img { max-width: 100%; max-height: 72vh; object-fit: contain }
table { border-collapse: collapse; font-size: .8em }
td, th { padding: .2em .8em; border-bottom: 1px solid #ccc }
pre { font-size: .75em; background: #f5f5f5; padding: .6em; overflow: auto; margin: .4em 0 }
blockquote { margin: 0; font-size: 1.2em; color: #444 } summary { cursor: pointer }
details { margin: .5em 0 } details[open] > summary { margin-bottom: .4em } a { color: #0072b2 }
@media print { section { min-height: 0 } }
"""


# --- Text


class Renderer(IPythonRenderer):
    "Markdown with formulas that browsers draw themselves."

    def block_math(self, body):
        return f"<p>{mathml(body, 'block')}</p>"

    def inline_math(self, body):
        return mathml(body, "inline")


def mathml(formula, display):
    return convert(formula, display=display).replace("\\_", "_")


def render(text):
    "Markdown as HTML; links to notebooks lead to their slides, other local links are left as text."
    renderer = Renderer(escape=False, exclude_anchor_links=True)
    found = MarkdownWithMath(renderer=renderer).render(text)
    found = re.sub(r'href="(?:\./)?(\d\d_\w+)\.ipynb', r'href="\1.html', found)
    return re.sub(r'<a href="(?!https?:|#|\d\d_\w+\.html)[^"]*"[^>]*>(.*?)</a>', r"\1", found, flags=re.S)


def short(paragraph):
    "The first sentence of a paragraph; the rest is folded. Lists, tables, formulas and questions stay whole."
    plain = re.match(r"[A-Za-z`$\"(]|\*\*[A-Z](?!redict)|\*[A-Z]", paragraph)
    first, *rest = SENTENCE.split(paragraph, maxsplit=1) if plain and "$$" not in paragraph else [paragraph]
    if not rest or len(rest[0]) < 60:
        return render(paragraph)
    summary = re.sub(r"^<p>|</p>\s*$", "", render(first))
    return f"<details><summary>{summary}</summary>\n{render(rest[0])}</details>"


def body_of(text):
    "A slide's text; what is folded, fenced or HTML stays as it is."
    parts = re.split(r"(<details>.*?</details>|```.*?```|\$\$.*?\$\$[^\n]*)", text, flags=re.S)
    whole = [i % 2 == 1 for i in range(len(parts))]
    return "\n".join(render(part) if keep else "\n".join(map(short, filter(str.strip, part.split("\n\n"))))
                     for part, keep in zip(parts, whole, strict=True))


# --- Slides


def texts_of(source):
    "(heading or None, text) for each slide that a cell of text makes."
    for part in re.split(r"^(?=##? )", source, flags=re.M):
        heading = re.match(r"(##? .*)\n*", part)
        rest = part[heading.end() if heading else 0:]
        for i, text in enumerate(QUESTION.split(rest)):
            if text.strip() or heading and i == 0:
                yield (heading[1] if heading and i == 0 else None), text.strip()


def shown_code(source):
    "A cell's code as a slide shows it; empty where it is left out."
    code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
    if HIDDEN.search(source) or re.search(r"^#\|\s*echo:\s*false", source, re.M) or code.count("\n") >= LINES:
        return ""
    try:
        idle = all(map(imports_or_tests, ast.parse(code).body))
    except SyntaxError:  # a line for the shell
        idle = False
    return "" if idle else highlight(code, PythonLexer(), HtmlFormatter())


def imports_or_tests(node):
    "Whether a statement only imports, or only tests what is there."
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).startswith("test_")
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert))


def outputs_of(cell):
    "(whether it is a picture, HTML) for each output that a slide shows."
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            alt = output["metadata"].get("image/png", {}).get("alt", "")
            image = "".join(data["image/png"]).replace("\n", "")
            yield True, f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{image}">'
        elif "text/html" in data:
            table = "".join(data["text/html"])
            yield False, re.sub(r"<style.*?</style>|<script.*?</script>", "", table, flags=re.S)
        elif "text/markdown" in data:
            yield False, render("".join(data["text/markdown"]))
        else:
            text = "".join(output.get("text", data.get("text/plain", ""))).strip("\n")
            if text and text.count("\n") < LINES:
                yield False, f"<pre>{html.escape(text)}</pre>"


def slides(notebook):
    "[(heading, [HTML])]: what the slides of a notebook hold."
    found, heading, asks = [], "", False  # whether the last slide asks for a prediction
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for new, text in texts_of(cell.source):
                heading = new or heading
                found.append((heading, [body_of(text)] if text else []))
                asks = "**Predict" in text
            continue
        outputs = list(outputs_of(cell))
        code = "" if any(is_picture for is_picture, _ in outputs) else shown_code(cell.source)
        again = code and any('class="highlight"' in part for part in found[-1][1])
        if again or asks and (code or outputs and not outputs[0][0]):
            found.append((heading, []))
        asks = asks and not (code or outputs)
        if code:
            found[-1][1].append(code)
        for is_picture, output in outputs:
            if is_picture:
                found.append((heading, [output]))
            else:
                found[-1][1].append(output)
    return found


def deck(notebook):
    "The slides of a notebook as one page."
    found = slides(notebook)
    sections = "\n".join(f"<section>\n{render(h)}\n{''.join(body)}\n</section>" for h, body in found)
    title = html.escape(re.sub(r"^#+ ", "", found[0][0]))
    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    head = f'<html lang="en"><head>{head}\n<style>{style}</style></head>'
    return f"<!doctype html>\n{head}\n<body>\n{sections}\n</body></html>\n"


def main(numbers=(), out=OUT):
    out.mkdir(exist_ok=True)
    rows = []
    for path in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        rows.append(f'<li><a href="{path.stem}.html">{html.escape(path.stem)}</a></li>')
        if not numbers or path.stem[:2] in numbers:
            (out / f"{path.stem}.html").write_text(deck(notebook), encoding="utf-8")
            print(f"{path.stem}: {len(slides(notebook))} slides")
    index = f'<!doctype html>\n<meta charset="utf-8"><title>Slides</title><ul>{"".join(rows)}</ul>\n'
    (out / "index.html").write_text(index, encoding="utf-8")
    print(f"open {out}/index.html; page down and page up turn the slides")


if __name__ == "__main__":
    main(sys.argv[1:])
