"""A service of Google ADK and a session of it."""

from __future__ import annotations

import pytest
from google.adk.sessions import Session

from lash_redis import SessionCache
from lash_redis.integrations.google_adk import LashSessionService
from tests.support.adk import S1


@pytest.fixture
def service(cache: SessionCache) -> LashSessionService:
    return LashSessionService(cache)


@pytest.fixture
async def session(service: LashSessionService) -> Session:
    return await service.create_session(**S1)
