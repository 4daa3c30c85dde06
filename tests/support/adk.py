"""Make events of Google ADK in few words, and load sessions."""

from __future__ import annotations

from typing import Any

from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, Session
from google.genai import types

S1 = {"app_name": "a", "user_id": "u", "session_id": "s1"}


def said(text: str, delta: dict[str, Any] | None = None, **more: Any) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author="user", content=content, actions=EventActions(state_delta=delta or {}), **more)


def texts(session: Session | None) -> list[str]:
    assert session is not None
    return [event.content.parts[0].text for event in session.events]


async def loaded(service: BaseSessionService, **names: Any) -> Session:
    found = await service.get_session(**{**S1, **names})
    assert found is not None
    return found
