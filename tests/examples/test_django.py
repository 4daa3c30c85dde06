"""The chat service of examples/django_chat, run by two processes of Django's server."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

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
