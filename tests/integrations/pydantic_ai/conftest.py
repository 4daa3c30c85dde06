"""Conversation stores of Pydantic AI on a cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lash_redis import (
    SessionCache,
)
from lash_redis.integrations.pydantic_ai import LashConversationStore

Opened = Callable[..., SessionCache]


@pytest.fixture
def conversations(cache: SessionCache) -> LashConversationStore:
    return LashConversationStore(cache)


@pytest.fixture
def open_store(open_cache: Opened) -> Callable[..., LashConversationStore]:
    """`open_store()` returns a store that the server cannot distinguish from that of another process."""
    return lambda **options: LashConversationStore(open_cache(**options))
