"""A headless Chromium of the system, for tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.servers import require_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@contextmanager
def headless_chromium() -> Iterator[Browser]:
    """Start the browser, and close it at the end. Without Chromium the test is skipped, or fails."""
    from playwright.sync_api import sync_playwright  # slow to import, and few tests need it

    chromium = require_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
