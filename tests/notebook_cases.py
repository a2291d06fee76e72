"""A pytest plugin: every notebook below nbs/ is one case, run from top to bottom in a process of its own.

The processes are forked from a server that has imported the heavy packages, so torch is imported once
and nothing that a notebook leaves behind reaches the next one. A failing cell stops its notebook, unless
it does nothing but check. Not run: cells with `#| eval: false`; `#| gpu` where there is no GPU; `#|
needs SETUP` where that real model has not been prepared (preparing it would take longer than all tests).
"""

import ast
import functools
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass

import pytest

HEAVY = [
    "torch",
    "transformers",
    "sae_lens",
    "transformer_lens",
    "pandas",
    "sklearn.linear_model",
    "matplotlib.pyplot",
]
CHECKS = {
    "test_eq",
    "test_ne",
    "test_close",
    "test_is",
    "test_fail",
    "test_warns",
    "test_shuffled",
    "test_stdout",
    "test_fig_exists",
    "test",
    "all_equal",
    "expect_fail",
}
LIMIT = 2400  # seconds for one notebook


# --- Reading notebooks


@dataclass
class Cell:
    "A code cell."

    source: str
    number: int  # its place among all cells, from 1

    @property
    def directives(self):
        return directives(self.source)

    @property
    def exported(self):
        return bool(self.directives.keys() & {"export", "exports", "exporti"})

    @property
    def lines(self):
        "Its lines without directives at the top."
        text = re.sub(r"\A(\s*#\s*\|.*\n?)+", "", self.source)
        return text.strip("\n").splitlines()


def directives(source):
    "What nbdev reads from the `#|` lines at the top of a cell: {name: rest}."
    found = {}
    for line in source.splitlines():
        match = re.match(r"\s*#\s*\|\s*([^\s:]+)\s*:?\s*(.*)", line)
        if match:
            found[match[1]] = match[2].strip()
        elif line.strip():
            break
    return found


def code_cells(notebook):
    "The code cells of a notebook that is given as a dictionary, less the empty ones."
    cells = enumerate(notebook["cells"], 1)
    sources = ((n, "".join(c["source"])) for n, c in cells if c["cell_type"] == "code")
    return [Cell(source, number) for number, source in sources if source.strip()]


def syntax_tree(source):
    "The syntax tree of a cell, magics included; an empty one if the cell is not Python."
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError:
        return ast.Module([], [])


def called(node):
    "The name of what a call calls."
    return getattr(node.func, "id", getattr(node.func, "attr", None))


def only_checks(source):
    "Whether a cell only calls fastcore's test functions, so that the cells after it do not need it."
    body = syntax_tree(source).body
    calls = [s.value for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    return bool(body) and len(calls) == len(body) and all(called(c) in CHECKS for c in calls)


def never_runs(cell):
    "What is not to be run at all, and what would export the notebooks."
    return cell.directives.get("eval", "").lower() == "false" or "nbdev_export(" in cell.source


@functools.cache
def prepared(setup):
    "Whether a real model is here with its dictionary: making both takes longer than all tests."
    from samu.workshop.setups import gemma_settings
    from samu.workshop.store import cache_folder

    if not (cache_folder("models") / setup / "config.json").is_file():
        return False
    width = json.loads((cache_folder("models") / setup / "config.json").read_text())["hidden_size"]
    made = [json.loads(f.read_text()) for f in cache_folder("saes").glob("*/cfg.json")]
    return any(cfg["d_in"] == width and cfg["d_sae"] == gemma_settings().sae["d_sae"] for cfg in made)


def why_not(cell):
    "Why a cell is not run here; None if it is."
    if "gpu" in cell.directives:
        import torch

        if not torch.cuda.is_available():
            return "needs a CUDA GPU"
    setup = cell.directives.get("needs")
    if setup and not prepared(setup):
        return f"needs {setup}, prepared (run: samu latents --setup {setup})"
    return None


# --- Running one, in a process of its own


def run_notebook(path, line):
    "Sends down the line: ('at', cell), ('skipped', cell, why), ('failed', report), and ('done',) in the end."
    from execnb.shell import CaptureShell

    os.chdir(path.parent)
    shell = CaptureShell(mpl_format="png")
    for name in ("showtraceback", "showsyntaxerror", "showindentationerror"):
        setattr(shell, name, silent)
    for cell in code_cells(json.loads(path.read_text(encoding="utf-8"))):
        line.send(("at", cell.number))
        if never_runs(cell):
            continue
        reason = why_not(cell)
        if reason:
            line.send(("skipped", cell.number, reason))
            continue
        result = shell.run_cell(cell.source)
        if result.exception:
            line.send(("failed", report(path, cell, result, shell.user_ns)))
            if not only_checks(cell.source):
                break
    line.send(("done",))


def silent(*args, **kwargs):
    "Failures are reported by `report`; IPython need not print them."


def report(path, cell, result, namespace):
    "Notebook, cell, failing line, message with both values, and what the cell had printed."
    error = result.exception
    frames = list(frames_of(error.__traceback__))
    mine = next((i for i, (frame, _) in enumerate(frames) if frame.f_globals is namespace), None)
    failing = frames[mine][1] if mine is not None else getattr(error, "lineno", None)
    lines = [f"{path.name}, cell {cell.number}", ""]
    for number, text in enumerate(cell.source.splitlines(), 1):
        if failing is None or abs(number - failing) <= 3:
            lines.append(f"{'>' if number == failing else ' '} {number:3} {text}")
    inner = frames[mine + 1 :] if mine is not None else []
    lines += ["", *(place(*f, namespace) for f in inner if "fastcore" not in f[0].f_code.co_filename)][-5:]
    lines.append(f"{type(error).__name__}: {error}".rstrip(": ")[:3000])
    printed = (result.stdout or "").strip()
    return "\n".join(lines + (["", "printed by the cell:", printed[-1500:]] if printed else []))


def frames_of(traceback):
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def place(frame, line, namespace):
    "Where a frame stands, in one line."
    import linecache

    file = "this notebook" if frame.f_globals is namespace else frame.f_code.co_filename
    text = linecache.getline(frame.f_code.co_filename, line).strip()
    return f"  in {frame.f_code.co_name} ({file}, line {line}): {text}"


def forked(target, *args):
    "Runs a function in a process forked from the server, and yields what it sends down its line."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, theirs))
    process.start()
    theirs.close()
    try:
        while ours.poll(LIMIT):
            yield ours.recv()
        yield ("failed", f"took longer than {LIMIT} s")
    except EOFError:
        process.join()
        yield ("ended", process.exitcode)
    finally:
        process.kill()


# --- pytest's side


class CellFailed(Exception):
    "Cells of a notebook raised exceptions; the message is the whole report."


class NotebookFile(pytest.File):
    def collect(self):
        try:
            cells = code_cells(json.loads(self.path.read_text(encoding="utf-8")))
        except (ValueError, KeyError) as error:
            raise self.CollectError(f"{self.path.name} is not a notebook: {error!r}") from None
        if cells:
            yield NotebookCase.from_parent(self, name="notebook")


class NotebookCase(pytest.Item):
    def runtest(self):
        failures, at, finished = [], None, False
        for what, *rest in forked(run_notebook, self.path):
            if what == "at":
                at = rest[0]
            elif what == "skipped":
                self.user_properties.append(("not run", f"{self.path.name}, cell {rest[0]}: {rest[1]}"))
            elif what == "failed":
                failures.append(rest[0])
            finished = finished or what == "done"
        if not finished and not failures:
            failures.append(f"{self.path.name}, cell {at}: the process ended")
        if failures:
            raise CellFailed("\n\n".join(failures))

    def repr_failure(self, excinfo):
        return str(excinfo.value) if isinstance(excinfo.value, CellFailed) else super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, None, self.path.name


def pytest_terminal_summary(terminalreporter):
    "Says which cells were not run."
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    skipped = [text for r in reports for name, text in getattr(r, "user_properties", ()) if name == "not run"]
    if skipped:
        terminalreporter.section("notebook cells that were not run")
        for reason in dict.fromkeys(re.sub(r", cell \d+", "", text) for text in skipped):
            file, _, why = reason.partition(": ")
            count = sum(text.startswith(file) and text.endswith(why) for text in skipped)
            terminalreporter.line(f"{file}: {count} cells; {why}")


def chosen(path, config):
    "Whether --notebooks lets this notebook through."
    prefixes = config.getoption("--notebooks")
    return not prefixes or path.name.startswith(tuple(prefixes.split(",")))


def pytest_addoption(parser):
    parser.addoption(
        "--notebooks",
        metavar="PREFIX[,PREFIX]",
        help="run only the notebooks whose names begin so, and no other tests",
    )


def pytest_configure(config):
    folder = config.rootpath / "nbs"
    if config.getoption("--notebooks") and not any(chosen(path, config) for path in folder.rglob("*.ipynb")):
        wanted = config.getoption("--notebooks")
        raise pytest.UsageError(f"--notebooks: no notebook in {folder.name}/ begins with {wanted!r}")
    profile = tempfile.mkdtemp(prefix="ipython-")  # neither the user's IPython profile nor their history
    config.add_cleanup(lambda: shutil.rmtree(profile, ignore_errors=True))
    os.environ.update(IPYTHONDIR=profile, MPLBACKEND="Agg", TQDM_DISABLE="1", IN_TEST="1")
    if str(config.rootpath) not in sys.path:
        sys.path.insert(0, str(config.rootpath))


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--notebooks") and collection_path.is_file():
        return True if collection_path.suffix != ".ipynb" or not chosen(collection_path, config) else None
    return None


def pytest_collect_file(file_path, parent):
    hidden = file_path.name.startswith((".", "_")) or ".ipynb_checkpoints" in file_path.parts
    if file_path.suffix == ".ipynb" and not hidden:
        return NotebookFile.from_parent(parent, path=file_path)
    return None
