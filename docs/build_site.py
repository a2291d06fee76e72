"""Builds the site: chapters, workshop, API reference, glossary, with search, for reading without a network.

    python docs/build_site.py            writes _docs/; open _docs/index.html

Run it with the packages of docs/requirements.txt; samu itself is read, not imported. The notebooks are
copied first, and only the copies change: what nbdev does not show is dropped, a Colab badge and a cell
that installs samu there are put in, and every exported cell gets an anchor, so that the reference can
link to it. Notebooks are not run: a page shows the outputs that are stored.
"""

import re
import shutil
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import nbformat
import yaml
from api_pages import reference
from check_site import faults
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parent.parent
SOURCE, SITE = ROOT / "build" / "site", ROOT / "_docs"
BADGE = "colab.svg"
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|include:\s*false)|nbdev_export\(", re.M)


def settings():
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


# --- Copies of the notebooks


def colab_address(git_url, page):
    "Where Colab opens a page's notebook: on the branch gh-pages, where the site is published."
    match = re.match(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?$", git_url)
    owner = match[1] if match else "OWNER/REPOSITORY"
    return f"https://colab.research.google.com/github/{owner}/blob/gh-pages/_sources/{page}.ipynb"


def colab_cell(git_url):
    "The first cell of a chapter: installs samu on Colab, does nothing elsewhere."
    return f"""# On Colab: fetch and install samu. Anywhere else: nothing.
import sys

if "google.colab" in sys.modules:
    !git clone -q --depth 1 {git_url} /content/samu
    %pip install -q "/content/samu[all]"
    %cd -q /content/samu/nbs"""


def shown_source(source):
    "A cell without the lines that only nbdev reads."
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")


def shown_output(output):
    "Mend the links in the Markdown and HTML that a cell wrote, in place: pages end in .html."
    data = output.get("data", {})
    for kind in ("text/markdown", "text/html"):
        if kind in data:
            pattern = r'(\]\(|href=")(?!\w+:)([^)"#]+)\.(?:ipynb|md)\b'
            data[kind] = re.sub(pattern, r"\1\2.html", "".join(data[kind]))


def folded(prompt):
    "Metadata of a cell whose code a reader has to unfold."
    return dict(tags=["hide-input"], mystnb=dict(code_prompt_show=prompt, code_prompt_hide=prompt))


def copied_cells(notebook):
    "The cells that a reader of the site sees, each exported one behind an anchor."
    for cell in notebook.cells:
        if cell.cell_type != "code":
            yield cell
            continue
        if not cell.source.strip() or HIDDEN.search(cell.source):
            continue
        exported = re.search(r"^#\|\s*export", cell.source, re.M)
        no_code = re.search(r"^#\|\s*echo:\s*false", cell.source, re.M)
        solution = re.search(r"^#\|\s*exercise\b", cell.source, re.M)
        if exported:
            yield new_markdown_cell(f'<a id="{cell.id}"></a>')
        cell.source = shown_source(cell.source)
        for output in cell.outputs:
            shown_output(output)
        if no_code:
            cell.metadata["tags"] = ["remove-input"]
        if solution:
            cell.metadata.update(folded("Solution"))
        yield cell


def copy_notebook(path, page, git_url):
    "Write the site's copy of a notebook."
    notebook = nbformat.read(path, as_version=4)
    cells = list(copied_cells(notebook))
    if re.match(r"\d\d_", page):
        up = "../" * page.count("/")
        badge = f"[![Open in Colab]({up}images/{BADGE})]({colab_address(git_url, page)})"
        title, *rest = cells
        first = new_code_cell(colab_cell(git_url), metadata=folded("On Colab: install samu"))
        cells = [title, new_markdown_cell(badge), first, *rest]
    notebook.cells = cells
    (SOURCE / f"{page}.ipynb").parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, SOURCE / f"{page}.ipynb")


def title_of(path):
    "The first heading of a page."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    match = re.search(r"^# (.+)$", text, re.M)
    return re.sub(r"[`*]", "", match[1]) if match else path.stem


# --- Sources of the site


def mend_links(text, page):
    "Links to folders and to files that are no pages lead to the page that stands for them."
    up = "../" * page.count("/")
    return re.sub(r"\]\((?:\.\./)*workshop/?\)", f"]({up}workshop.md)", text).replace("```csv", "```text")


def course_pages():
    "Pages of the teaching kit, as far as they are there: Markdown and notebooks in nbs/teaching."
    found = [p for p in sorted((ROOT / "nbs" / "teaching").glob("*")) if p.suffix in (".md", ".ipynb")]
    return sorted(found, key=lambda p: not p.stem.startswith("glossary"))


def write_sources():
    "Everything that Jupyter Book reads, in build/site. Returns its table of contents."
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    nbs, git_url = ROOT / "nbs", settings()["git_url"]
    shutil.copytree(nbs / "images", SOURCE / "images")
    shutil.copy(ROOT / "docs" / BADGE, SOURCE / "images")
    for path in sorted(p for p in nbs.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        copy_notebook(path, path.relative_to(nbs).with_suffix("").as_posix(), git_url)
    results = [p for p in nbs.glob("results/*") if p.suffix in (".csv", ".html")]  # linked: for a click
    for path in [*nbs.glob("*.md"), *nbs.glob("teaching/*.md"), *nbs.glob("results/*.md"), *results]:
        (SOURCE / path.relative_to(nbs)).parent.mkdir(exist_ok=True)
        shutil.copy(path, SOURCE / path.relative_to(nbs))
    shutil.copy(ROOT / "docs" / "install.md", SOURCE)
    for name, text in reference(ROOT).items():
        (SOURCE / f"{name}.md").parent.mkdir(exist_ok=True)
        (SOURCE / f"{name}.md").write_text(text, encoding="utf-8")
    write_workshop_page()
    mend_sources()
    return contents()


def write_workshop_page():
    "A page that stands for the folder nbs/workshop."
    pages = sorted((SOURCE / "workshop").glob("*.ipynb"))
    lines = [f"- [{title_of(p)}](workshop/{p.name})" for p in pages]
    text = "# The workshop\n\nWhat the chapters use and nobody has to read: safe, fast, general.\n\n"
    (SOURCE / "workshop.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


def mend_sources():
    "Mend the links of all Markdown, in notebooks too."
    for path in SOURCE.rglob("*"):
        page = path.relative_to(SOURCE).as_posix()
        if path.suffix == ".md":
            path.write_text(mend_links(path.read_text(encoding="utf-8"), page), encoding="utf-8")
        elif path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = mend_links(cell.source, page)
            nbformat.write(notebook, path)


def contents():
    "The table of contents."
    chapters = [f"{p.stem}" for p in sorted(SOURCE.glob("[0-9][0-9]_*.ipynb"))]
    more = [p.stem for p in sorted(SOURCE.glob("*.md")) if p.stem not in ("workshop", "install")]
    more += [f"results/{p.stem}" for p in sorted((SOURCE / "results").glob("*.md"))]
    teaching = [f"teaching/{p.stem}" for p in course_pages()]
    workshop = [f"workshop/{p.stem}" for p in sorted((SOURCE / "workshop").glob("*.ipynb"))]
    api = sorted(p.stem for p in (SOURCE / "api").glob("*.md") if p.stem != "samu")
    exercises = [f"exercises/{p.stem}" for p in sorted((SOURCE / "exercises").glob("*.ipynb"))]
    parts = {"Start": ["install"], "Chapters": chapters, "Exercises and solutions": exercises}
    parts |= {"Teaching": teaching, "About": more}
    listed = [dict(caption=k, chapters=[dict(file=f) for f in files]) for k, files in parts.items() if files]
    rest = [("Reference", "api/samu", [f"api/{name}" for name in api]), ("Workshop", "workshop", workshop)]
    for caption, top, below in rest:
        sections = [dict(file=f) for f in below]
        listed.append(dict(caption=caption, chapters=[dict(file=top, sections=sections)]))
    return dict(format="jb-book", root="index", parts=listed)


CONFIG = dict(
    title="samu",
    author="The samu developers",
    copyright="2026",
    logo="",
    only_build_toc_files=True,
    execute=dict(execute_notebooks="off"),
    html=dict(use_issues_button=False, use_repository_button=False, use_edit_page_button=False),
    launch_buttons=dict(notebook_interface="classic"),
    parse=dict(myst_enable_extensions=["amsmath", "colon_fence", "dollarmath", "html_image", "linkify"]),
    sphinx=dict(
        extra_extensions=["sphinx-mathjax-offline"],
        config=dict(
            html_theme_options=dict(show_navbar_depth=1, navigation_with_keys=False, navbar_persistent=[]),
            html_context=dict(default_mode="light"),
            html_show_search_summary=False,  # the texts beside results cannot be read from a disk
            html_show_sourcelink=False,
            html_copy_source=True,
            nb_ipywidgets_js={},
            nb_mime_priority_overrides=[["html", "image/png", 5]],
            suppress_warnings=["mystnb.unknown_mime_type", "myst.header", "misc.highlighting_failure"],
        ),
    ),
)


def mend_pages(html):
    "Take out the scripts that would run code on a server, which no page uses. Links to audits open them."
    for path in html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"<script>const THEBE_JS_URL.*?</script>\s*", "", text, flags=re.S)
        text = re.sub(r"<script[^>]*sphinx-thebe[^>]*></script>\s*", "", text)
        text = re.sub(r'<script type="text/x-thebe-config">.*?</script>\s*', "", text, flags=re.S)
        text = re.sub(r"<script>kernelName = .*?</script>\s*", "", text)
        text = re.sub(r'download="" (href="[^"]+\.html")', r"\1", text)
        path.write_text(text, encoding="utf-8")


def main():
    start = time.time()
    toc = write_sources()
    (SOURCE / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    (SOURCE / "_config.yml").write_text(yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", "-q", str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    html = SOURCE / "_build" / "html"
    if done.returncode or not (html / "index.html").is_file():
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    print(done.stderr.strip())
    mend_pages(html)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(html, SITE, ignore=shutil.ignore_patterns("*webpack-macros.html", ".buildinfo"))
    found = faults(SITE)
    print("\n".join(found[:40]))
    pages = len(list(SITE.rglob("*.html")))
    seconds = time.time() - start
    print(f"{SITE.relative_to(ROOT)}/index.html: {pages} pages, {len(found)} faults, {seconds:.0f} s")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
