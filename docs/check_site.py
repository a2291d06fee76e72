"""Lists what is wrong with a built site: broken links, and what a browser would fetch from elsewhere.

    python docs/check_site.py [FOLDER]     _docs if left out
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest", "shortcut icon"}
FROM_ELSEWHERE = re.compile(r"(?:@import\s+|url\()\s*[\"']?(?:https?:)?//", re.I)


class Page(HTMLParser):
    "The ids, links and fetched addresses of a page."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.fetched, self.styles = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[k] for k in ("id", "name") if found.get(k)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in FETCHED and found.get(FETCHED[tag]):
            self.fetched.append(found[FETCHED[tag]])
        if tag == "link" and (found.get("rel") or "").lower() in FETCHED_LINKS:
            self.fetched.append(found["href"])
        if found.get("srcset"):
            self.fetched += [part.split()[0] for part in found["srcset"].split(",")]
        if found.get("style"):
            self.styles.append(found["style"])


def read_pages(site):
    "{path below the site: page}."
    found = sorted(site.rglob("*.html"))
    return {p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8")) for p in found}


def target(page, link):
    "(path, fragment) of a link inside the site; None for one that leads elsewhere."
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = (Path("/") / Path(page).parent / unquote(parts.path)) if parts.path else Path("/") / page
    return Path(*path.resolve().parts[1:]).as_posix(), unquote(parts.fragment)


def broken(pages, files):
    "Links to pages, files or places that are not there."
    faults = []
    for name, page in pages.items():
        for link in dict.fromkeys([*page.links, *page.fetched]):
            there = target(name, link)
            if there is None:
                continue
            path, fragment = there
            if path not in files:
                faults.append(f"{name}: no file {link}")
            elif fragment and path in pages and fragment not in pages[path].ids:
                faults.append(f"{name}: no place {link}")
    return faults


def from_elsewhere(pages, site):
    "What a browser would fetch from another machine."
    faults = []
    for name, page in pages.items():
        outside = [a for a in page.fetched if re.match(r"(https?:)?//", a)]
        outside += [s for s in page.styles if FROM_ELSEWHERE.search(s)]
        faults += [f"{name}: fetches {a}" for a in outside]
    for css in sorted(site.rglob("*.css")):
        text = re.sub(r"/\*.*?\*/", "", css.read_text(encoding="utf-8", errors="replace"), flags=re.S)
        if FROM_ELSEWHERE.search(text):
            faults.append(f"{css.relative_to(site)}: fetches a style or a font")
    return faults


def clicks(pages, start="index.html", most=2):
    "{page or page#place: clicks} that can be reached from the first page."
    reached, border = {start: 0}, [start]
    for n in range(1, most + 1):
        found = []
        for name in border:
            for link in pages[name].links:
                there = target(name, link)
                if there is None or there[0] not in pages:
                    continue
                path, fragment = there
                for place in (path, f"{path}#{fragment}") if fragment else (path,):
                    if place not in reached:
                        reached[place] = n
                        found += [place] if place in pages else []
        border = found
    return reached


def faults(site):
    "Everything that is wrong with a site."
    pages = read_pages(site)
    files = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    return broken(pages, files) + from_elsewhere(pages, site)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "_docs")
    found = faults(folder)
    print("\n".join(found) or f"{folder}: no broken link, nothing from elsewhere")
    sys.exit(bool(found))
