"""Copies the master notebooks of nbs/exercises/ into the package, without outputs: `python tests/copy_exercises.py`.

The installed package makes students' copies from them. tests/test_course.py says when they differ.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = Path("samu") / "data" / "exercises"


def without_outputs(text):
    "A notebook without outputs, as text."
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= dict(outputs=[], execution_count=None)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def copies(root=ROOT):
    "{name: text} of what the package should hold."
    files = sorted((root / "nbs" / "exercises").glob("*.ipynb"))
    return {f.name: without_outputs(f.read_text(encoding="utf-8")) for f in files}


def main():
    (ROOT / PLACE).mkdir(parents=True, exist_ok=True)
    for old in (ROOT / PLACE).glob("*.ipynb"):
        old.unlink()
    for name, text in copies().items():
        (ROOT / PLACE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
