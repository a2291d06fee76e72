"""The site, the pages of latents and the page of an audit in a real Chromium: what they show, that the search finds, no
JavaScript error, and no request to another machine. SAMU_SCREENSHOTS=FOLDER keeps a picture of everything.
Where there is no Chromium, all of this is skipped. Uses the biographies.
"""

import browser_tools as tools
import pytest
from browser_tools import keep

from samu import your_model

FOUND, REASON = tools.chromium()
pytestmark = [pytest.mark.skipif(FOUND is None, reason=REASON), pytest.mark.xdist_group("pages")]  # one worker
SITE = tools.ROOT / "_docs"
built = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="the site is not built; run make docs")


# --- The site

PAGES = ["index", "install", "00_one_page", "04_latents", "14_explore", "api/samu", "workshop"]


@built
@pytest.mark.parametrize("name", PAGES)
def test_site_page(name, watched):
    page = watched.page
    page.goto((SITE / f"{name}.html").as_uri())
    assert page.locator("h1").first.inner_text().strip()
    shown = page.evaluate("() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
    assert shown == []
    keep(page, f"site-{name}", whole=False)
    assert watched.faults() == []


@built
@pytest.mark.parametrize("words, page_name", [("separation score", "04_latents"), ("unlearn", "api/samu")])
def test_site_search(words, page_name, watched):
    page = watched.page
    page.goto((SITE / "search.html").as_uri() + f"?q={words.replace(' ', '+')}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("() => !/Searching/.test(document.querySelector('#search-results h2')?.innerText ?? '')")
    links = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert any(page_name in link for link in links)
    keep(page, f"site-search-{words}", whole=False)
    assert watched.faults() == []


@built
def test_site_formula_is_typeset(watched):
    page = watched.page
    page.goto((SITE / "00_one_page.html").as_uri())
    page.wait_for_selector("mjx-container", state="attached")
    assert watched.faults() == []


# --- Pages without scripts


def test_latent_pages(exp, tmp_path, watched):
    from samu.explore import write_latent_pages

    latents = [*exp.latents.known[:2].tolist(), *exp.latents.unknown[:2].tolist()]
    index, page = write_latent_pages(exp, tmp_path / "latents", latents), watched.page
    page.goto(index.as_uri())
    assert page.locator("td a").count() == 4
    keep(page, "latents-index")
    page.locator("td a").last.click()
    assert page.locator("h1").inner_text() == f"Latent {latents[-1]}"
    assert page.locator("mark").count() > 0 and page.locator("code").count() >= 10
    assert page.locator("img").evaluate("i => i.naturalWidth") > 300
    keep(page, "latent-page")
    page.get_by_role("link", name="All latents").click()
    assert page.locator("td a").count() == 4 and page.locator("script").count() == 0
    assert watched.faults() == []


def test_audit_page(exp, tmp_path, watched, monkeypatch):
    "Without models trained again: another test makes an audit with them."
    import samu

    real = your_model.measurement
    monkeypatch.setattr(your_model, "measurement", lambda exp, name, run, gold: real(exp, name, run))
    run = samu.unlearn(exp, exp.entities[7].name)
    try:
        samu.audit(run, tmp_path / "audit")
    finally:
        run.restore()
    page = watched.page
    page.goto((tmp_path / "audit" / "audit.html").as_uri())
    assert "forgotten" in page.locator("h1").inner_text()  # the verdict comes first
    assert page.locator("img").count() >= 3 and page.locator("script").count() == 0
    assert page.locator(".verdict").count() > 10
    assert page.locator("img").evaluate_all("all => all.every(i => i.naturalWidth > 100)")
    keep(page, "audit")
    assert watched.faults() == []
