"""The audit pages of two people: writes audit_invented.html and audit_real.html.

    python nbs/results/audits.py           those that are not there
    python nbs/results/audits.py real      this one anew: twenty minutes on two cores

Neither person is in a table that a result stands on (nbs/tuned_on_whom.md, protocol.md). The real one is that
of `make real`, on whom the method was developed: the page shows what an audit says, and is no test.
"""

import sys
import tempfile
from pathlib import Path

PAGES = {"invented": ("biographies", "Bipo Gifen", "two_sided"),
         "real": ("gemma-3-270m", "Michael Jordan", None)}


def file(page: str) -> Path:
    "Where a page is."
    return Path(__file__).with_name(f"audit_{page}.html")


def main() -> None:
    "Forget somebody as the front door does it, and audit the result."
    import samu
    from samu.workshop.store import atomic_write

    for page in sys.argv[1:] or [p for p in PAGES if not file(p).is_file()]:
        setup, name, method = PAGES[page]
        run = samu.unlearn(samu.load(setup), name, method)
        run.restore()
        with tempfile.TemporaryDirectory() as folder:
            report = samu.audit(run, Path(folder) / "audit")
            atomic_write(file(page), (Path(folder) / "audit" / "audit.html").read_text(encoding="utf-8"))
        print(report["people"][0]["verdict"])


if __name__ == "__main__":
    main()
