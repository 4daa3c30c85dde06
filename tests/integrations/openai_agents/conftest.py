"""A session of the OpenAI Agents SDK on a cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lash_redis import (
    SessionCache,
)
from lash_redis.integrations.openai_agents import LashSession

Opened = Callable[..., SessionCache]


@pytest.fixture
def session(cache: SessionCache) -> LashSession:
    return LashSession("s1", cache)
