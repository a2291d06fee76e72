"""The rules of the house: exports in sync, chapters in order, notebooks clean, README.md from the index.

Each rule is a function that lists what is wrong; the tests ask for an empty list, and plant faults to see them found.
"""
import ast, base64, json, os, re, shutil, subprocess, symtable, sys
from pathlib import Path

import pytest
from make_readme import from_repository, make_readme
from notebook_cases import code_cells, directives, syntax_tree

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
FEW_FIGURES = {"12_cli"}         # chapters that need no two figures
MOST_BYTES, MOST_LINES = 1_500_000, 60

def read(path): return json.loads(Path(path).read_text(encoding="utf-8"))
def names(paths): return [Path(p).stem for p in paths]
def chapter(path):  # its number; None for the index
    match = re.match(r"(\d\d)_", Path(path).name)
    return int(match[1]) if match else None


# --- The exported modules are those that the notebooks give, and nothing else

def python_files(folder):
    "{name: content} of the Python files below a folder."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*.py")) if "__pycache__" not in p.parts}

def out_of_sync(found, expected):
    "What differs between two such dictionaries."
    faults = [f"samu/{n}: no notebook exports it" for n in found.keys() - expected.keys()]
    faults += [f"samu/{n}: missing; run nbdev_export" for n in expected.keys() - found.keys()]
    return sorted(faults + [f"samu/{n}: not what its notebook exports; edit the notebook and run nbdev_export"
                            for n in found.keys() & expected.keys() if found[n] != expected[n]])

@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "Python files that the notebooks export, made in a copy of the project so that the tree stays as it is."
    copy = tmp_path_factory.mktemp("export")
    shutil.copy(ROOT / "settings.ini", copy)
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "images"))
    environ = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # nbdev exports nothing where IN_TEST is set
    done = subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=copy, env=environ,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python_files(copy / "samu")

def test_modules_are_in_sync(exported):
    assert out_of_sync(python_files(ROOT / "samu"), exported) == []

def test_planted_differences_are_found(exported, tmp_path):
    shutil.copytree(ROOT / "samu", tmp_path / "samu")
    for name, content in exported.items(): (tmp_path / "samu" / name).write_bytes(content)
    assert out_of_sync(python_files(tmp_path / "samu"), exported) == []
    (tmp_path / "samu" / "orphan.py").write_text("x = 1\n")
    (tmp_path / "samu" / "_modidx.py").unlink()
    with (tmp_path / "samu" / "entities.py").open("a") as f: f.write("# by hand\n")
    assert [fault.split(":")[0] for fault in out_of_sync(python_files(tmp_path / "samu"), exported)] == \
           ["samu/_modidx.py", "samu/entities.py", "samu/orphan.py"]

def git(root, *args): return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)

def untracked(root):
    "Files in samu/ and nbs/ that git does not know, ignored ones included; a reason instead if that cannot be told."
    if shutil.which("git") is None: return "git is not installed"
    top = git(root, "rev-parse", "--show-toplevel")
    if top.returncode: return "not a git checkout: " + top.stderr.strip()
    if Path(top.stdout.strip()).resolve() != Path(root).resolve(): return "not the top of a git checkout"
    files = git(root, "ls-files", "--others", "-z", "--", "samu", "nbs").stdout.split("\0")
    return [f for f in files if f and not {"__pycache__", ".ipynb_checkpoints"} & set(Path(f).parts)]

def test_git_tracks_every_file():
    found = untracked(ROOT)
    if isinstance(found, str): pytest.skip(found)
    assert found == []

def test_planted_untracked_files_are_found(tmp_path):
    if shutil.which("git") is None: pytest.skip("git is not installed")
    for name in "samu/known.py", "samu/new.py", "samu/__pycache__/known.pyc", "nbs/ignored.ipynb":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("ignored*\n")
    git(tmp_path, "init", "-q"); git(tmp_path, "add", "samu/known.py")
    assert sorted(untracked(tmp_path)) == ["nbs/ignored.ipynb", "samu/new.py"]
    assert "not the top" in untracked(tmp_path / "samu")


# --- Chapters import from lower chapters only

def exports_to(notebook):
    "The module that a notebook exports, if any."
    return next((cell.directives["default_exp"] for cell in code_cells(notebook) if "default_exp" in cell.directives), None)

def imported_modules(source):
    "Modules of the package that a cell imports, in functions too."
    found = set()
    for node in ast.walk(syntax_tree(source)):
        if isinstance(node, ast.Import): found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("samu.")}
        elif isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            if node.level == 0 and path[0] != "samu": continue
            inner = path if node.level else path[1:]  # `from .x import` in a module is `from samu.x import`
            found |= {inner[0]} if inner and inner[0] else {a.name for a in node.names}
    return found

def upward_imports(notebooks):
    "Imports from the same or a higher chapter; {path: notebook} -> list of faults."
    numbers = {exports_to(nb): chapter(path) for path, nb in notebooks.items() if exports_to(nb)}
    faults = []
    for path, nb in notebooks.items():
        if chapter(path) is None: continue  # the index may show everything
        for cell in code_cells(nb):
            own = 0 if cell.directives.keys() & {"export", "exports", "exporti"} else 1  # a chapter may use its own module outside it
            for module in sorted(imported_modules(cell.source)):
                number = numbers.get(module)
                if module == "*" or module.startswith("__"): continue
                if number is None: faults.append(f"{Path(path).name}, cell {cell.number}: no chapter exports samu.{module}")
                elif number >= chapter(path) + own: faults.append(f"{Path(path).name}, cell {cell.number}: samu.{module} is chapter {number:02}")
    return faults

def test_chapters_import_lower_chapters():
    assert upward_imports({p: read(p) for p in NOTEBOOKS}) == []

def notebook(*sources):
    "A notebook as a dictionary, for planting faults."
    return dict(metadata={}, cells=[dict(cell_type="code", source=s, outputs=[], metadata={}) for s in sources])

def test_planted_upward_imports_are_found():
    tower = {"00_low.ipynb": notebook("#| default_exp low", "from samu.low import x", "#| export\nimport json"),
             "01_mid.ipynb": notebook("#| default_exp mid", "#| export\nfrom samu.low import x\nimport samu.low", "from samu.mid import *"),
             "02_top.ipynb": notebook("from samu.mid import y; from samu import low, __version__"), "index.ipynb": notebook("import samu.mid")}
    assert upward_imports(tower) == []
    tower["00_low.ipynb"]["cells"] += notebook("def f():\n    from samu.mid import y", "#| export\nfrom samu.low import x",
                                               "from samu import mid", "import samu.gone as g", "%matplotlib inline\nfrom .mid import y")["cells"]
    assert upward_imports(tower) == ["00_low.ipynb, cell 4: samu.mid is chapter 01", "00_low.ipynb, cell 5: samu.low is chapter 00",
                                     "00_low.ipynb, cell 6: samu.mid is chapter 01", "00_low.ipynb, cell 7: no chapter exports samu.gone",
                                     "00_low.ipynb, cell 8: samu.mid is chapter 01"]


# --- A notebook runs from top to bottom in an empty cache, too

def reads_and_gives(source, functions):
    "Names that a cell reads when it runs, and names that it gives. What a function or class reads goes to `functions`: it is read when somebody calls it."
    from IPython.core.inputtransformer2 import TransformerManager
    try: top = symtable.symtable(TransformerManager().transform_cell(source), "cell", "exec")
    except SyntaxError: return set(), set()
    def inside(table): return {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}.union(*map(inside, table.get_children()))
    gives = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    reads = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    for child in top.get_children():
        if child.get_name() in gives: functions[child.get_name()] = inside(child)
        else: reads |= inside(child)                      # a comprehension, or a lambda, which a cell mostly calls at once
    return reads, gives

def used_too_early(nb):
    "Names that a cell needs, itself or through the functions that it calls, and that only a later cell gives. With what is cached such a cell may run all the same."
    cells, functions, given, faults = code_cells(nb), {}, set(), []
    gives = [reads_and_gives(c.source, {})[1] for c in cells]
    for i, cell in enumerate(cells):
        todo, needed = list(reads_and_gives(cell.source, functions)[0]), set()
        while todo:
            name = todo.pop()
            if name not in needed: needed.add(name); todo += functions.get(name, ())
        given |= gives[i]
        faults += [f"cell {cell.number}: {n} comes later" for n in sorted(needed & set().union(*gives[i + 1:]) - given)]
    return faults

@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_cells_need_nothing_from_below(path):
    assert used_too_early(read(path)) == []

def test_planted_needs_from_below_are_found():
    assert used_too_early(notebook("def f(x):\n    y = g(x)\n    return y", "def g(x): return x", "y = f(1)")) == []
    assert used_too_early(notebook("def f(x): return g(x)", "if not cached: y = f(1)", "def g(x): return h", "h = 2")) == ["cell 2: g comes later"]
    assert used_too_early(notebook("print(z)", "z = 1")) == ["cell 1: z comes later"]


# --- Notebooks are stored clean

PROGRESS = re.compile(r"\d%\|.*\||\b(HBox|IntProgress|FloatProgress)\(|\bit/s\b")
MACHINE_PATH = re.compile(r"(?<![\w./:~-])/(work|root|tmp|home|Users|private|var/folders)/")

def output_text(output):
    "The text of an output, without pictures."
    data = output.get("data", {})
    parts = [output.get("text", "")] + [v for k, v in data.items() if k.startswith("text/")]
    return "\n".join("".join(p) for p in parts)

def unclean(nb, name, size):
    "What should not be in a stored notebook."
    faults, figures = [], 0
    if "widgets" in nb["metadata"]: faults.append("metadata.widgets")
    if size > MOST_BYTES: faults.append(f"{size:,} bytes")
    for number, cell in enumerate(nb["cells"], 1):
        if cell["cell_type"] != "code": continue
        def fault(text): faults.append(f"cell {number}: {text}")
        lines = len("".join(cell["source"]).splitlines())
        if lines > MOST_LINES: fault(f"{lines} lines")
        for output in cell["outputs"]:
            text = output_text(output)
            figures += "image/png" in output.get("data", {})
            if output["output_type"] == "error": fault("an error")
            if output.get("name") == "stderr": fault("stderr")
            if PROGRESS.search(text): fault("a progress bar")
            if MACHINE_PATH.search(text): fault(f"a path of some machine: {MACHINE_PATH.search(text)[0]}")
    if chapter(name) is not None and Path(name).stem not in FEW_FIGURES and figures < 2: faults.append(f"{figures} stored figures")
    return faults

@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_notebook_is_clean(path):
    assert unclean(read(path), path.name, path.stat().st_size) == []

@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_cells_for_a_gpu_pass_without_one(path):
    "JupyterLab knows nothing of our flags: with `Run All Cells` such a cell runs everywhere, and an error would end the run."
    gpu = [c for c in code_cells(read(path)) if "gpu" in directives(c.source)]
    assert [c.number for c in gpu if "torch.cuda.is_available()" not in c.source] == []

def test_planted_dirt_is_found():
    stream = lambda text, name="stdout": dict(output_type="stream", name=name, text=[text])
    shown = lambda **data: dict(output_type="display_data", data={k.replace("_", "/"): v for k, v in data.items()})
    picture = shown(image_png=base64.b64encode(b"/tmp/").decode(), text_plain=["<Figure>"])
    nb = notebook("x\n" * 60, "plot", "plot")
    for cell in nb["cells"][1:]: cell["outputs"] = [picture, stream("50 % of 3 it, at samu/tmp/x and https://example.org/home/")]
    assert unclean(nb, "03_latents.ipynb", 1000) == []
    nb["cells"] = nb["cells"][:2] + notebook("x\n" * 61, *"abcdef")["cells"]
    outputs = [stream("loss 1", "stderr"), dict(output_type="error", ename="E"), stream(" 10%|█    | 1/10 [00:01<00:09]"),
               shown(text_plain="HBox(children=(FloatProgress(value=0.0)))"), stream("saved in /tmp/abc/model"),
               shown(text_html="<td>'/root/.cache'</td>")]
    for cell, output in zip(nb["cells"][3:], outputs): cell["outputs"] = [output]
    nb["metadata"]["widgets"] = {}
    assert unclean(nb, "03_latents.ipynb", 2_000_000) == [
        "metadata.widgets", "2,000,000 bytes", "cell 3: 61 lines", "cell 4: stderr", "cell 5: an error", "cell 6: a progress bar",
        "cell 7: a progress bar", "cell 8: a path of some machine: /tmp/", "cell 9: a path of some machine: /root/", "1 stored figures"]
    assert unclean(notebook("x"), "12_cli.ipynb", 1000) == unclean(notebook("x"), "index.ipynb", 1000) == []


# --- README.md is the index

def dead_links(text, root):
    "Relative links to files that do not exist."
    links = re.findall(r"""\]\(([^\s)#]+)|\b(?:src|href)="([^"#]+)""", text)
    return [link for pair in links for link in pair if link and not re.match(r"[a-z]+:", link) and not (Path(root) / link).exists()]

def test_readme_is_the_index():
    assert (ROOT / "nbs" / "index.ipynb").is_file(), "nbs/index.ipynb, from which README.md is made, is missing"
    assert (ROOT / "README.md").is_file(), "README.md is missing; run `make readme`"
    assert (ROOT / "README.md").read_text(encoding="utf-8") == make_readme(ROOT), "nbs/index.ipynb has changed; run `make readme`"
    assert dead_links((ROOT / "README.md").read_text(encoding="utf-8"), ROOT) == []

def test_readme_from_a_small_index(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
    result = lambda text, **data: [new_output("execute_result", {"text/plain": text, **data})]
    cells = [new_markdown_cell("# samu\n\n![picture](images/a.png) [chapter](00_a.ipynb#top) [web](https://example.org/00_a.ipynb) [gone](b.ipynb)"),
             new_code_cell("#| hide\nhidden = 1"), new_code_cell("#| echo: false\nunseen()", outputs=result("seen")),
             new_code_cell("#| eval: false\nshown()", outputs=result("t", **{"text/html": "<style scoped>\n x\n</style>\n<table></table>"}))]
    (tmp_path / "nbs" / "images").mkdir(parents=True)
    for name in "images/a.png", "00_a.ipynb": (tmp_path / "nbs" / name).touch()
    nbformat.write(new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    text = make_readme(tmp_path)
    assert text.split("-->\n\n")[1] == ("# samu\n\n![picture](nbs/images/a.png) [chapter](nbs/00_a.ipynb#top) [web](https://example.org/00_a.ipynb) "
                                        "[gone](b.ipynb)\n\n    seen\n\n```python\nshown()\n```\n\n<table></table>\n")
    assert dead_links(text, tmp_path) == ["b.ipynb"]
    cells[2].outputs = result("x", **{"image/png": "aGk="})
    nbformat.write(new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    with pytest.raises(ValueError, match="stores a picture"): make_readme(tmp_path)
