"""A pytest plugin: every notebook cell that checks something is a case of its own.

A case first runs the cells above it, in one IPython shell per notebook. The last case of a notebook runs what is left.
So a notebook is run from top to bottom and each cell once, and a case that is picked alone runs no more than it needs.
Not run: cells with `#| eval: false`, and cells with a flag listed under `tst_flags` in settings.ini, which are
reported as skipped. (Cells flagged `gpu` do run where there is a GPU.)
"""
import ast, gc, json, os, random, re, shutil, sys, tempfile, warnings
from configparser import ConfigParser
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fastcore.test
import pytest

CHECKS = {name for name in fastcore.test.__all__ if name.startswith("test")} | {"expect_fail", "ExceptionExpected"}


# --- Reading notebooks

@dataclass
class Cell:
    "A code cell."
    source: str
    number: int       # its place among all cells, from 1
    code_number: int  # its place among the code cells, from 1: what JupyterLab shows in brackets after Run All
    directives: dict = field(init=False)  # {"eval": "false"} for a cell that starts with `#| eval: false`

    def __post_init__(self): self.directives = directives(self.source)

    @property
    def never_runs(self):  # as in nbdev_test: what is not to be run at all, and what would export the notebook
        return self.directives.get("eval", "").lower() == "false" or "nbdev_export(" in self.source

    @property
    def title(self):
        lines = [line.strip() for line in self.source.splitlines()]
        first = next((line for line in lines if line and not line.startswith("#|")), "")
        return f"cell {self.number}: {first[:60].rstrip()}".replace("::", ":")

def directives(source):
    "What nbdev reads from the `#|` lines at the top of a cell."
    found = {}
    for line in source.splitlines():
        match = re.match(r"\s*#\s*\|\s*([^\s:]+)\s*:?\s*(.*)", line)
        if match: found[match[1]] = match[2].strip()
        elif line.strip(): break
    return found

def code_cells(notebook):
    "The code cells of a notebook that is given as a dictionary, less the empty ones."
    cells = []
    for number, cell in enumerate(notebook["cells"], 1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.strip(): cells.append(Cell(source, number, len(cells) + 1))
    return cells

def syntax_tree(source):
    "The syntax tree of a cell, magics included; an empty one if the cell is not Python."
    from IPython.core.inputtransformer2 import TransformerManager
    try: return ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError: return ast.Module([], [])

def is_checking(source):
    "Whether a cell calls one of fastcore's test functions."
    names = (getattr(n.func, "id", getattr(n.func, "attr", None)) for n in ast.walk(syntax_tree(source)) if isinstance(n, ast.Call))
    return any(name in CHECKS for name in names)


# --- Running them

class CellFailed(Exception):
    "A cell raised an exception; the message is the whole report."

class NotebookRun:
    "One notebook in one shell. Only one is alive at a time: the next one ends it, and starts from a clean state."
    alive = None

    @classmethod
    def of(cls, path, cells, flags):
        if cls.alive is None or cls.alive.path != path:
            cls.end()
            cls.alive = cls(path, cells, flags)
        return cls.alive

    @classmethod
    def end(cls):
        if cls.alive is not None: cls.alive._close()
        cls.alive = None

    def __init__(self, path, cells, flags):
        from execnb.shell import CaptureShell
        self.path, self.cells, self.flags = path, cells, flags
        self.next = 0        # index of the first cell that has not been run
        self.failures = {}   # index of a cell -> report
        self.broken = None   # index of the cell that stopped the notebook: a failed cell that is no check
        self.told = False    # whether a case has shown that
        self.folder, self.environ, self.filters = path.parent, dict(os.environ), list(warnings.filters)
        os.environ["IN_TEST"] = "1"  # nbdev then exports nothing
        main = sys.modules["__main__"]
        self.shell = CaptureShell(mpl_format="png")
        self.main, sys.modules["__main__"] = sys.modules["__main__"], main
        # Failures are reported by `_report`; IPython need not print them.
        self.shell.showtraceback = self.shell.showsyntaxerror = self.shell.showindentationerror = lambda *args, **kwargs: None
        _reset_state(any(re.search(r"\b(torch|samu)\b", cell.source) for cell in cells))

    def _close(self):
        import atexit
        from IPython.core.interactiveshell import InteractiveShell
        with self._stage(): self.shell.reset(new_session=False)
        atexit.unregister(self.shell.atexit_operations)  # it would keep the shell, and its models, in memory
        InteractiveShell._instance = None
        for key in set(os.environ) - set(self.environ) - {"PYTEST_CURRENT_TEST"}: del os.environ[key]
        os.environ.update({k: v for k, v in self.environ.items() if k != "PYTEST_CURRENT_TEST"})
        gc.collect()

    @contextmanager
    def _stage(self):
        "Working folder, warning filters and `__main__` of the notebook, given back afterwards."
        folder, main = os.getcwd(), sys.modules["__main__"]
        with warnings.catch_warnings(record=True):
            warnings.filters[:] = self.filters
            sys.modules["__main__"] = self.main
            os.chdir(self.folder)
            try: yield
            finally:
                self.folder, self.filters = os.getcwd(), list(warnings.filters)
                os.chdir(folder)
                sys.modules["__main__"] = main

    def check(self, index):
        "Runs the cells up to `index`, less those that have been run, and raises what went wrong there."
        while self.next <= min(index, len(self.cells) - 1) and self.broken is None: self._run_next()
        if index in self.failures: raise CellFailed(self.failures[index])
        if self.broken is None or index < self.broken: return
        # The first case below the cell that broke shows it; the cases after that have nothing to add.
        if self.told: skip(f"not reached: cell {self.cells[self.broken].number} failed")
        self.told = True
        raise CellFailed("Not reached, because of a cell above:\n" + self.failures[self.broken])

    def _run_next(self):
        cell, index = self.cells[self.next], self.next
        self.next += 1
        if cell.never_runs or skip_reason(cell, self.flags): return
        with self._stage(): result = self.shell.run_cell(cell.source)
        if isinstance(result.exception, KeyboardInterrupt): raise KeyboardInterrupt
        if not result.exception: return
        self.failures[index] = self._report(cell, result)
        if not is_checking(cell.source): self.broken = index

    def _report(self, cell, result):
        "Notebook, cell, failing line, message with both values, and what the cell had printed."
        error = result.exception
        frames = list(_frames(error.__traceback__))
        mine = next((i for i, (frame, _) in enumerate(frames) if frame.f_globals is self.shell.user_ns), None)
        line = error.lineno if isinstance(error, SyntaxError) else frames[mine][1] if mine is not None else None
        report = [f"{self.path.name}, cell {cell.number} (code cell {cell.code_number})", ""]
        for number, text in enumerate(cell.source.splitlines(), 1):
            if line is None or abs(number - line) <= 3: report.append(f"{'>' if number == line else ' '} {number:3} {text}")
        inner = frames[mine + 1:] if mine is not None else []
        report += [""] + [_where(frame, number, self.shell.user_ns) for frame, number in inner if frame.f_globals is not vars(fastcore.test)][-4:]
        report.append(_message(error))
        if not str(error) and error.__context__: report.append("after " + _message(error.__context__))
        printed = (result.stdout or "").strip()
        if printed: report += ["", "printed by the cell:", printed[-1500:]]
        return "\n".join(report)

def _frames(traceback):
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next

def _where(frame, line, namespace):
    import linecache
    code = frame.f_code
    file = "this notebook" if frame.f_globals is namespace else code.co_filename
    return f"  in {code.co_name} ({file}, line {line}): {linecache.getline(code.co_filename, line).strip()}"

def _message(error, longest=3000):
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    return text if len(text) <= longest else text[:longest] + " [cut here]"

def _reset_state(with_torch):
    "What one notebook could leave behind for the next: seeds, plots, and torch's modes."
    import matplotlib, matplotlib.pyplot as plt, numpy as np
    random.seed(0); np.random.seed(0)
    plt.close("all"); matplotlib.rcdefaults()
    if not with_torch and "torch" not in sys.modules: return
    import torch
    torch.set_grad_enabled(True); torch.set_default_dtype(torch.float32); torch.set_default_device(None)
    torch.use_deterministic_algorithms(False); torch.set_num_threads(_threads.setdefault("torch", torch.get_num_threads()))
    torch.manual_seed(0)

_threads = {}  # torch's number of threads when it was first seen

def skip_reason(cell, flags):
    "Why a flagged cell is not run here; None if it is."
    for flag in cell.directives:
        if flag not in flags: continue
        if flag != "gpu": return f"flag {flag!r} is in tst_flags"
        import torch
        if not torch.cuda.is_available(): return "needs a CUDA GPU, and there is none here"

def unprepared(cells):
    "Why a notebook that says `#| prepared SETUP` is not run here: preparing a real model would take longer than all tests."
    for setup in (cell.directives["prepared"] for cell in cells if "prepared" in cell.directives):
        from samu.models import prepared
        if not prepared(setup): return f"{setup} is not prepared in this cache (run: samu latents --setup {setup}); tests/test_real.py runs the real model in any case"


# --- pytest's side

class NotebookFile(pytest.File):
    def collect(self):
        try: cells = code_cells(json.loads(self.path.read_text(encoding="utf-8")))
        except (ValueError, KeyError) as error: raise self.CollectError(f"{self.path.name} is not a notebook: {error!r}") from None
        flags = project(self.config)["tst_flags"].split()
        for index, cell in enumerate(cells):
            if cell.never_runs or not (is_checking(cell.source) or set(cell.directives) & set(flags)): continue
            yield NotebookCase.from_parent(self, name=cell.title, cells=cells, index=index, flags=flags)
        yield NotebookCase.from_parent(self, name="rest of the notebook", cells=cells, index=len(cells), flags=flags)

class NotebookCase(pytest.Item):
    def __init__(self, *, cells, index, flags, **kwargs):
        super().__init__(**kwargs)
        self.cells, self.index, self.flags = cells, index, flags

    def runtest(self):
        reason = unprepared(self.cells) or (skip_reason(self.cells[self.index], self.flags) if self.index < len(self.cells) else None)
        if reason: skip(reason)
        NotebookRun.of(self.path, self.cells, self.flags).check(self.index)

    def repr_failure(self, excinfo):
        return str(excinfo.value) if isinstance(excinfo.value, CellFailed) else super().repr_failure(excinfo)

    def reportinfo(self):  # file, "line" (here the cell) counted from 0, headline
        number = self.cells[min(self.index, len(self.cells) - 1)].number if self.cells else 1
        return self.path, number - 1, f"{self.path.name}, {self.name}"

def skip(reason):
    "Skips the case, and names the notebook and not this file in pytest's summary."
    raise pytest.skip.Exception(reason, _use_item_location=True)

def project(config):
    "What settings.ini says about notebooks."
    parser = ConfigParser(delimiters=["="], interpolation=None, defaults=dict(nbs_path="nbs", tst_flags="gpu"))
    parser.read(config.rootpath / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]

def chosen(path, config):
    "Whether --notebooks lets this notebook through."
    prefixes = config.getoption("--notebooks")
    return not prefixes or path.name.startswith(tuple(prefixes.split(",")))

def pytest_addoption(parser):
    parser.addoption("--notebooks", metavar="PREFIX[,PREFIX]", help="run only the notebooks whose names begin so, and no other tests")

def pytest_configure(config):
    folder = config.rootpath / project(config)["nbs_path"]
    if config.getoption("--notebooks") and not any(chosen(path, config) for path in folder.glob("*.ipynb")):
        raise pytest.UsageError(f"--notebooks: no notebook in {folder.name}/ begins with {config.getoption('--notebooks')!r}")
    profile = tempfile.mkdtemp(prefix="ipython-")  # neither the user's IPython profile nor their history
    config.add_cleanup(lambda: shutil.rmtree(profile, ignore_errors=True))
    os.environ.update(IPYTHONDIR=profile, MPLBACKEND="Agg", TQDM_DISABLE="1")
    if str(config.rootpath) not in sys.path: sys.path.insert(0, str(config.rootpath))

def pytest_ignore_collect(collection_path, config):
    if config.getoption("--notebooks") and collection_path.is_file():
        return True if collection_path.suffix != ".ipynb" or not chosen(collection_path, config) else None

def pytest_collect_file(file_path, parent):
    if file_path.suffix != ".ipynb" or file_path.name.startswith((".", "_")): return None
    if file_path.parent == parent.config.rootpath / project(parent.config)["nbs_path"] or parent.session.isinitpath(file_path):
        return NotebookFile.from_parent(parent, path=file_path)

def pytest_sessionfinish(): NotebookRun.end()
