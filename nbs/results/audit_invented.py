"""The audit page of an invented person: writes audit_invented.html.

    python nbs/results/audit_invented.py
"""

import tempfile
from pathlib import Path

FILE = Path(__file__).with_suffix(".html")


def main() -> None:
    "Forget somebody on both sides, and audit the result."
    import samu
    from samu.workshop.store import atomic_write

    exp = samu.load("biographies")
    run = samu.unlearn(exp, exp.entities[7].name, "two_sided")
    run.restore()
    with tempfile.TemporaryDirectory() as folder:
        report = samu.audit(run, Path(folder) / "audit")
        atomic_write(FILE, (Path(folder) / "audit" / "audit.html").read_text(encoding="utf-8"))
    print(report["people"][0]["verdict"])


if __name__ == "__main__":
    main()
