"""The documentation: every link leads somewhere, and the site is built of it without a warning or anything remote."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import patch_diffusion as pd
from needs import need

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks") for page in folder.glob("*.md"))
OTHER_NAMES = {ROOT / "README.md": "index", ROOT / "benchmarks" / "README.md": "benchmarks"}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name_of(page):
    """On the site."""
    return OTHER_NAMES.get(page, page.stem)


def text_of(page):
    """Without what is shown as it is: there a link is no link."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page):
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def broken(page):
    """The links of a page that lead nowhere; what lies elsewhere on the web is not looked at."""
    for link in LINK.findall(text_of(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert list(broken(page)) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Some - words, *here*\n[a](#some-words-here) [b](#others) [c](none.md) `[d](code)` [e](https://x)"
    )
    assert list(broken(page)) == ["#others", "none.md"]


def test_the_order_of_pages_names_pages(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    groups = importlib.import_module("pages").GROUPS
    named = [name for group in groups.values() for name in group]
    assert set(named) == {name_of(page) for page in PAGES}
    assert len(named) == len(set(named))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    need("zensical", "docs")
    build = tmp_path_factory.mktemp("docs")
    lay_out = (
        f"import sys; sys.path.insert(0, 'docs/site'); import pages, pathlib; pages.main(pathlib.Path({str(build)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    for command in (["-c", lay_out], ["-m", "zensical", "build", "--strict", "-f", str(build / "mkdocs.yml")]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "griffe:" not in done.stderr, done.stderr
    return build / "site"


def test_every_page_is_there_and_in_the_navigation(site):
    start = (site / "index.html").read_text(encoding="utf-8")
    expected = {f"{name_of(page)}.html" for page in PAGES}
    assert expected <= {path.name for path in site.iterdir()}
    assert expected <= set(re.findall(r'href="?(?:\./)?([\w.-]+)', start)) | {"index.html"}
    assert "<h1" in start and "make demo" in start


def test_the_reference_has_every_public_name_and_its_examples(site):
    pages = {path: path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html")}
    for name in set(pd.__all__) - {"__version__"}:
        assert sum(f'id="patch_diffusion.{name}"' in text for text in pages.values()) == 1, name
    joined = "".join(pages.values())
    assert "&gt;&gt;&gt; " in joined and "<blockquote>" not in joined
    assert re.search(r'<a [^>]*href="?[^>]*#patch_diffusion.PatchSchedule"?', joined)


def test_nothing_comes_from_elsewhere(site):
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]*)", text
        )
        assert loaded == [] and not re.search(r"(?:@import|url\()[\"' ]*(?:https?:)?//", text), path


def test_links_of_the_site_lead_to_files(site):
    for path in site.rglob("*.html"):
        if path.name == "404.html":  # its links start at the root of a server
            continue
        for link in re.findall(
            r'(?:href|src)="?([^"\s>]+)', re.sub(r"<pre.*?</pre>", "", path.read_text("utf-8"), flags=re.S)
        ):
            target = link.partition("#")[0].partition("?")[0]
            assert "://" in target or target.startswith("data:") or (path.parent / target).exists(), (path.name, link)
