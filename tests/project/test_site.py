"""The site that `make docs` builds, opened in a headless Chromium as files, without a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.paths import ROOT

LIMIT_MS = 60_000
NARROW, WIDE = 390, 1280
STRAY = '<span class="pre">\\</span>'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site. A warning of Sphinx fails the tests."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-n", "-q", "-d", str(folder / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


def pages_of(site: Path) -> list[Path]:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list(ROOT.glob("docs/**/*.md")))
    return pages


def widths(page: Page) -> tuple[int, int]:
    found: list[int] = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return found[0], found[1]


@pytest.mark.slow
def test_no_code_of_a_page_is_a_stray_backslash(site: Path) -> None:
    """The space between code and the letters behind it is escaped, and no other."""
    assert [str(path.relative_to(site)) for path in pages_of(site) if STRAY in path.read_text("utf-8")] == []


@pytest.mark.slow
def test_no_page_is_wider_than_its_window(site: Path, browser: Browser) -> None:
    too_wide = {}
    for width in (NARROW, WIDE):
        page = browser.new_page(viewport={"width": width, "height": 900})
        for path in pages_of(site):
            page.goto(path.as_uri())
            content, window = widths(page)
            if content > window:
                too_wide[str(path.relative_to(site)), width] = content
    assert too_wide == {}


@pytest.mark.slow
def test_a_page_that_is_wider_than_its_window_is_found(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": NARROW, "height": 900})
    page.set_content("<p style='width: 500px'>wide</p>")
    content, window = widths(page)
    assert content > window


@pytest.mark.slow
def test_the_search_finds_a_page_without_a_server(site: Path, browser: Browser) -> None:
    page = browser.new_page()
    for words, title in (("lease", "Let one worker answer"), ("oom", "A full server"), ("acquire_lease", "The store")):
        page.goto((site / "index.html").as_uri())
        page.fill("input[name=q]", words)
        page.press("input[name=q]", "Enter")
        expect(page.locator("#search-results a", has_text=title).first).to_be_visible(timeout=LIMIT_MS)


@pytest.mark.slow
def test_the_text_of_a_picture_contrasts_with_its_box(browser: Browser) -> None:
    """WCAG asks for a ratio of 4.5. A picture has a background of its own, so the theme of the page does not matter."""
    least = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
        for picture in sorted(ROOT.glob("docs/pictures/*.svg")):
            page.goto(picture.as_uri())
            ratios: list[float] = page.evaluate(CONTRASTS)
            assert len(ratios) > 10
            least[scheme, picture.stem] = min(ratios)
    assert len(least) == 6
    assert {name: ratio for name, ratio in least.items() if ratio < 4.5} == {}


CONTRASTS = """() => {
  const light = color => {
    const parts = color.match(/[0-9.]+/g).slice(0, 3).map(part => part / 255)
    const [r, g, b] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const boxes = [...document.querySelectorAll("rect")].map(rect => [rect.getBBox(), light(getComputedStyle(rect).fill)])
  return [...document.querySelectorAll("text")].map(text => {
    const {x, y, height} = text.getBBox(), middle = y + height / 2
    const behind = boxes.filter(([box]) => box.x <= x && x <= box.x + box.width
      && box.y <= middle && middle <= box.y + box.height)
    const [dark, bright] = [behind.at(-1)[1], light(getComputedStyle(text).fill)].sort((a, b) => a - b)
    return (bright + 0.05) / (dark + 0.05)
  })
}"""
"""For each text, the ratio of its luminance to that of the last box drawn behind it."""
