"""Runs the notebooks in place, keeps what they show, and exports them.

    python tests/execute_notebooks.py [--all] [PREFIX ...]      PREFIX picks notebooks: 03 04 workshop/store

Each notebook gets a fresh kernel. What would change from run to run is dropped: progress bars and
whatever else goes to stderr, widgets, execution counts, times. Cells with `#| eval: false`, those
flagged `gpu` where there is no GPU, and those that need a model which is not prepared, are not run and
keep the outputs they have; --all runs them too. A notebook that fails is left as it was.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_cases import Cell, never_runs, why_not

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
SKIP = "skip-execution"  # nbclient passes over cells with this tag


def left_alone(source):
    "Whether a cell is not run, so that its outputs stay."
    cell = Cell(source, 0)
    return never_runs(cell) or why_not(cell) is not None


def tidy(notebook):
    "Drops whatever differs from run to run, in place."
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [
            o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})
        ]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
    notebook.metadata = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))


def execute(path, everything=False):
    "Runs one notebook in place."
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if not everything and left_alone(cell.source)]
    for cell in tagged:
        cell.metadata["tags"] = [*cell.metadata.get("tags", []), SKIP]
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        skip_cells_with_tag=SKIP,
        resources=dict(metadata=dict(path=str(path.parent))),
    )
    client.execute()
    for cell in tagged:
        cell.metadata["tags"].remove(SKIP)
        if not cell.metadata["tags"]:
            del cell.metadata["tags"]
    tidy(notebook)
    nbformat.write(notebook, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "prefixes", nargs="*", metavar="PREFIX", help="paths below nbs/ begin so; all if left out"
    )
    parser.add_argument(
        "--all", action="store_true", help="also run cells with `#| eval: false`, `gpu` or `needs`"
    )
    args = parser.parse_args()
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export

    os.chdir(ROOT)
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    names = {p: p.relative_to(ROOT / "nbs").as_posix() for p in sorted((ROOT / "nbs").rglob("*.ipynb"))}
    paths = [p for p, name in names.items() if name.startswith(tuple(args.prefixes) or "")]
    if not paths:
        sys.exit(f"no notebook in nbs/ begins with {' or '.join(args.prefixes)}")
    nbdev_export()  # first, since a chapter imports the modules of those before it
    try:
        for path in paths:
            start = time.time()
            try:
                execute(path, args.all)
            except CellExecutionError as error:
                sys.exit(f"{path.name} failed and was left as it was:\n{str(error)[-4000:]}")
            print(f"{path.name}: {time.time() - start:.0f} s", flush=True)
    finally:
        nbdev_clean()


if __name__ == "__main__":
    main()
