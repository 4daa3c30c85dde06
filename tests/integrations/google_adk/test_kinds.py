"""Every part of a content and every action of an event that the SDK has is returned as it was appended."""

from __future__ import annotations

import pytest
from google.adk.events import Event, EventActions
from google.genai import types

from lash_redis.integrations.google_adk import LashSessionService
from tests.support.adk import loaded
from tests.support.samples import sample

TEXTS = ["a\0b", "a\ud800b", "QUJD" * 25_000]


def as_stored(event: Event) -> Event:
    """The event as the SDK's own stores return it."""
    return Event.model_validate(event.model_dump(mode="json", exclude_none=True))


@pytest.mark.parametrize("text", TEXTS, ids=["NUL", "lone surrogate", "base64"])
async def test_parts_of_every_kind_are_returned_as_they_were_appended(service, session, open_cache, text):
    events = []
    for name, field in types.Part.model_fields.items():
        part = types.Part(**{name: sample(field.annotation, text)})
        assert part.model_dump(exclude_none=True), name
        events.append(Event(author="agent", content=types.Content(role="model", parts=[part])))
    for event in events:
        await service.append_event(session, event)
    found = await loaded(LashSessionService(open_cache()))
    for name, event, stored in zip(types.Part.model_fields, events, found.events, strict=True):
        assert stored == as_stored(event), name


@pytest.mark.parametrize("text", TEXTS, ids=["NUL", "lone surrogate", "base64"])
async def test_actions_of_every_kind_are_returned_as_they_were_appended(service, session, open_cache, text):
    events = []
    for name, field in EventActions.model_fields.items():
        if name == "requested_auth_configs":  # its values are models that the annotation does not name
            continue
        actions = EventActions(**{name: sample(field.annotation, text)})
        assert actions.model_dump(exclude_none=True, exclude_defaults=True), name
        events.append(Event(author="agent", actions=actions))
    for event in events:
        await service.append_event(session, event)
    found = await loaded(LashSessionService(open_cache()))
    assert found.events == [as_stored(event) for event in events]
