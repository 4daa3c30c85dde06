"""The chat service of examples/fastapi, run by real uvicorn processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from lash_redis import blocking
from lash_redis.embedded import EmbeddedServer
from tests.support.services import START_SECONDS, Service

ANN, BOB = {"X-User": "ann"}, {"X-User": "bob"}


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages]


@pytest.mark.slow
def test_two_workers_serve_the_chats_of_their_users(start: Callable[..., Service]) -> None:
    """The workers share an embedded server; requests reach either of them."""
    service = start("fastapi", "--workers", "2")
    with httpx.Client(base_url=service.url, headers=ANN, timeout=30) as ann:
        chats = [ann.post("/chats", json={"title": f"Trip {at}"}).json()["id"] for at in range(3)]
        chat = f"/chats/{chats[0]}"
        for at in range(4):
            answer = ann.post(f"{chat}/messages", json={"content": f"q{at}", "id": f"m{at}"}).json()
            assert answer["content"] == f"Echo: q{at}"
        assert contents(ann.get(chat, params={"limit": 3}).json()) == ["Echo: q2", "q3", "Echo: q3"]
        assert contents(ann.get(chat, params={"limit": 2, "before": "m1"}).json()) == ["q0", "Echo: q0"]

        again = ann.post(f"{chat}/messages/m3/again").json()
        assert again["id"] != answer["id"]
        ann.post(f"{chat}/messages/m1/again", json={"content": "edited"}).raise_for_status()
        assert contents(ann.get(chat).json()) == ["q0", "Echo: q0", "edited", "Echo: edited"]

        ann.put(f"{chat}/title", json={"title": "Rome"}).raise_for_status()
        listed = ann.get("/chats").json()
        assert [(line["id"], line["title"]) for line in listed] == [
            (chats[0], "Rome"),
            (chats[2], "Trip 2"),
            (chats[1], "Trip 1"),
        ]
        assert ann.get("/chats", params={"after": listed[0]["cursor"]}).json() == listed[1:]
        assert ann.get(f"{chat}/usage").json()["usage"]["input_tokens"] == 1 + 3 + 5 + 7 + 7 + 3

        assert ann.post(f"{chat}/messages", json={"content": "x", "id": "m0"}).status_code == 409
        assert ann.get(chat, params={"before": "nope"}).status_code == 422
        assert ann.get(chat, headers=BOB).json() == []
        assert ann.get("/chats", headers=BOB).json() == []
        assert ann.post(f"{chat}/messages", json={"content": "mine?"}, headers=BOB).status_code == 404
        assert ann.delete(chat, headers=BOB).status_code == 404
        ann.delete(chat).raise_for_status()
        assert ann.post(f"{chat}/messages", json={"content": "late"}).status_code == 404
        assert len(ann.get("/chats").json()) == 2


@pytest.mark.slow
def test_the_turn_of_a_killed_worker_is_continued_by_another(start: Callable[..., Service]) -> None:
    with EmbeddedServer() as server, ThreadPoolExecutor() as threads:
        first = start("fastapi", CHAT_REDIS_URL=server.url, CHAT_MODEL_SECONDS="60")
        second = start("fastapi", CHAT_REDIS_URL=server.url)
        chat = "/chats/" + httpx.post(f"{first.url}/chats", json={"title": "t"}, headers=ANN).json()["id"]
        question = {"content": "hello", "id": "m1"}
        lost = threads.submit(httpx.post, f"{first.url}{chat}/messages", json=question, headers=ANN, timeout=60)
        deadline = time.monotonic() + START_SECONDS
        while not httpx.get(f"{second.url}{chat}", headers=ANN).json():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
        assert isinstance(lost.exception(), httpx.TransportError)
        answer = httpx.post(f"{second.url}{chat}/messages", json=question, headers=ANN, timeout=60).json()
        assert answer["content"] == "Echo: hello"
        repeated = httpx.post(f"{second.url}{chat}/messages", json=question, headers=ANN, timeout=60).json()
        assert repeated == answer
        assert contents(httpx.get(f"{second.url}{chat}", headers=ANN).json()) == ["hello", "Echo: hello"]


@pytest.mark.slow
def test_a_message_of_a_killed_worker_is_answered_by_an_answer_and_never_by_a_later_message(
    start: Callable[..., Service],
) -> None:
    with EmbeddedServer() as server:
        service = start("fastapi", CHAT_REDIS_URL=server.url)
        chat_id = httpx.post(f"{service.url}/chats", json={"title": "t"}, headers=ANN).json()["id"]
        with blocking.connect(server.url, namespace="chat-service") as cache:  # a worker that was killed behind this
            cache.chat(chat_id, owner="ann").append({"role": "user", "content": "hello", "id": "m1"})

        def sent(content: str, message_id: str) -> dict[str, Any]:
            url, question = f"{service.url}/chats/{chat_id}/messages", {"content": content, "id": message_id}
            answer: dict[str, Any] = httpx.post(url, json=question, headers=ANN, timeout=60).json()
            return answer

        answer = sent("are you there?", "m2")
        assert (answer["role"], answer["content"]) == ("assistant", "Echo: are you there?")
        assert sent("hello", "m1") == answer
        found = httpx.get(f"{service.url}/chats/{chat_id}", headers=ANN).json()
        assert contents(found) == ["hello", "are you there?", "Echo: are you there?"]
