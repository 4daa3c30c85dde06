"""The chat service of examples/django_chat, run by two processes of Django's server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lash_redis import blocking
from tests.support.services import DjangoService, Service

ANN, BOB = {"X-User": "ann"}, {"X-User": "bob"}


@pytest.mark.slow
def test_a_django_process_continues_the_chat_of_another_that_was_killed(
    start: Callable[..., Service], url: str
) -> None:
    first, second = (start("django_chat", kind=DjangoService, CHAT_REDIS_URL=url) for _ in range(2))
    question = {"id": "m1", "content": "Hello"}
    answer = httpx.post(f"{first.url}/chats/trip", json=question, headers=ANN).json()
    assert answer["content"] == "Echo: Hello"
    first.kill()

    assert httpx.post(f"{second.url}/chats/trip", json=question, headers=ANN).json() == answer
    messages = httpx.get(f"{second.url}/chats/trip", headers=ANN).json()["messages"]
    assert [message["content"] for message in messages] == ["Hello", "Echo: Hello"]
    assert [chat["id"] for chat in httpx.get(f"{second.url}/chats", headers=ANN).json()["chats"]] == ["trip"]

    assert httpx.post(f"{second.url}/chats/trip", json={"id": "m1", "content": "x"}, headers=ANN).status_code == 409
    assert httpx.get(f"{second.url}/chats/trip", headers=BOB).json() == {"messages": []}
    assert httpx.post(f"{second.url}/chats/trip", json=question, headers=BOB).status_code == 404
    assert httpx.delete(f"{second.url}/chats/trip", headers=ANN).status_code == 204
    assert httpx.post(f"{second.url}/chats/trip", json=question, headers=ANN).status_code == 404


@pytest.mark.slow
def test_a_question_whose_worker_was_killed_is_answered_with_the_next_one(
    start: Callable[..., Service], url: str
) -> None:
    with blocking.connect(url, namespace="chat-service") as cache:
        cache.chat("trip", owner="ann").append({"id": "m1", "role": "user", "content": "one"})
        cache.chat("tour", owner="ann").append(*({"id": f"m{at}", "role": "user", "content": f"{at}"} for at in (1, 2)))
    service = start("django_chat", kind=DjangoService, CHAT_REDIS_URL=url)

    def ask(chat: str, message_id: str, content: str) -> dict[str, Any]:
        question = {"id": message_id, "content": content}
        answer: dict[str, Any] = httpx.post(f"{service.url}/chats/{chat}", json=question, headers=ANN).json()
        return answer

    answer = ask("trip", "m2", "two")
    assert (answer["role"], answer["content"]) == ("assistant", "Echo: two")
    assert ask("trip", "m1", "one") == answer
    assert ask("tour", "m1", "1")["content"] == "Echo: 2"
    found = httpx.get(f"{service.url}/chats/tour", headers=ANN).json()
    assert [message["id"] for message in found["messages"]][:2] == ["m1", "m2"]
