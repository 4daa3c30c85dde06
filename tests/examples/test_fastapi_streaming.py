"""The streaming chat service of examples/fastapi_streaming, in a headless Chromium and by real uvicorn processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from lash_redis.embedded import EmbeddedServer
from tests.support.http_relay import HttpRelay
from tests.support.services import START_SECONDS, Service

QUESTION = " ".join(f"w{number}" for number in range(30))
ANSWER = f"You wrote: {QUESTION} "
LIMIT_MS = 60_000
LOG_EVENTS = """
  window.seen = []
  window.EventSource = class extends EventSource {
    constructor(url) {
      super(url)
      this.addEventListener("message", event => seen.push([event.lastEventId, JSON.parse(event.data)]))
    }
  }
"""
"""Records each event that the page receives, in order."""


def opened(browser: Browser, url: str) -> Page:
    page = browser.new_page(viewport={"width": 420, "height": 640})
    page.add_init_script(LOG_EVENTS)
    page.goto(f"{url}/?chat=trip")
    return page


def say(page: Page, content: str) -> None:
    page.fill("#text", content)
    page.click("text=Send")


def answers(page: Page) -> list[str]:
    return page.locator("li.assistant").all_inner_texts()


@pytest.mark.slow
def test_a_browser_that_loses_its_connection_continues_on_another_worker(
    browser: Browser, start: Callable[..., Service]
) -> None:
    with EmbeddedServer() as server:
        first, second = (
            start("fastapi_streaming", CHAT_REDIS_URL=server.url, CHAT_TOKEN_SECONDS="0.2") for _ in range(2)
        )
        with HttpRelay(first.port) as relay:
            page, watching = opened(browser, relay.url), opened(browser, second.url)
            say(page, QUESTION)
            expect(page.locator("li.assistant")).to_contain_text("w2", timeout=LIMIT_MS)
            expect(watching.locator("li.assistant")).to_contain_text("w2", timeout=LIMIT_MS)
            relay.switch(second.port)
            page.wait_for_function("seen.length > 12", timeout=LIMIT_MS)
            assert b"Last-Event-ID: " in relay.received
            say(page, "more")
            expect(page.locator("li.pending")).to_have_text("more")
            _keep_picture(page)
            expect(page.locator("li.assistant")).to_have_text([ANSWER, "You wrote: more "], timeout=LIMIT_MS)
            expect(watching.locator("li.assistant")).to_have_text([ANSWER, "You wrote: more "], timeout=LIMIT_MS)
        for each in (page, watching):
            seen: list[list[str]] = each.evaluate("seen")
            assert "".join(token for _, token in seen) == f"{ANSWER}You wrote: more "
            assert len({cursor for cursor, _ in seen}) == len(seen)


@pytest.mark.slow
def test_a_stop_button_ends_the_answer_where_it_is(browser: Browser, start: Callable[..., Service]) -> None:
    with EmbeddedServer() as server:
        service = start("fastapi_streaming", CHAT_REDIS_URL=server.url, CHAT_TOKEN_SECONDS="0.2")
        page = opened(browser, service.url)
        say(page, QUESTION)
        expect(page.locator("li.assistant")).to_contain_text("w2", timeout=LIMIT_MS)
        page.click("#stop")
        expect(page.locator("#stop")).to_be_disabled(timeout=LIMIT_MS)
        stored = _state(service)["messages"]
        assert [message["role"] for message in stored] == ["user", "assistant"]
        assert ANSWER.startswith(stored[1]["content"])
        assert len(stored[1]["content"]) < len(ANSWER)


@pytest.mark.slow
def test_the_answer_of_a_killed_worker_is_made_again_by_another(start: Callable[..., Service]) -> None:
    with EmbeddedServer() as server:
        first = start("fastapi_streaming", CHAT_REDIS_URL=server.url, CHAT_TOKEN_SECONDS="60")
        second = start("fastapi_streaming", CHAT_REDIS_URL=server.url, CHAT_TOKEN_SECONDS="0")
        message = {"id": "m1", "content": "hello"}
        httpx.post(f"{first.url}/chats/trip/messages", json=message, cookies={"user": "ann"}).raise_for_status()
        deadline = time.monotonic() + START_SECONDS
        while not _state(second)["generation"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
        while len(_state(second)["messages"]) < 2:
            assert time.monotonic() < deadline + START_SECONDS
            time.sleep(0.2)
        assert [each["content"] for each in _state(second)["messages"]] == ["hello", "You wrote: hello "]
        httpx.post(f"{second.url}/chats/trip/messages", json=message, cookies={"user": "ann"}).raise_for_status()
        assert _state(second)["pending"] == []


@pytest.mark.slow
def test_a_cursor_that_is_malformed_is_a_bad_request(start: Callable[..., Service]) -> None:
    with EmbeddedServer() as server:
        service = start("fastapi_streaming", CHAT_REDIS_URL=server.url)
        url, cookies = f"{service.url}/chats/trip/generations/gen", {"user": "ann"}
        refused = httpx.get(url, cookies=cookies, headers={"Last-Event-ID": "5"})
        assert refused.status_code == 400
        assert "expected None or the cursor of a StreamEvent, got '5'" in refused.json()["detail"]
        of_another_stream = httpx.get(url, cookies=cookies, headers={"Last-Event-ID": "0123456789-5"}, timeout=30)
        assert of_another_stream.text == "event: end\ndata:\n\n"


def _state(service: Service) -> dict[str, Any]:
    state: dict[str, Any] = httpx.get(f"{service.url}/chats/trip", cookies={"user": "ann"}).json()
    return state


def _keep_picture(page: Page) -> None:
    """Write the picture of the docs if LASH_REDIS_PICTURES names a folder."""
    if folder := os.environ.get("LASH_REDIS_PICTURES"):
        page.screenshot(path=Path(folder) / "streaming-chat.png")
