"""Parts of every kind that the SDK has are returned as they were saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
)

from tests.support.conversations import AT, talk
from tests.support.samples import sample_dataclass

TEXTS = ["a\0b", "a\ud800b", "QUJD" * 25_000]


def kinds(union: Any) -> list[Any]:
    """The classes of the parts of a message, without the one that the SDK has replaced by two others."""
    found = dict.fromkeys(get_args(each)[0] for each in get_args(get_args(union)[0]))
    return [kind for kind in found if kind.__name__ != "RetryPromptPart"]


def part_of_model(kind: Any, text: str) -> Any:
    part = sample_dataclass(kind, text)
    return replace(part, speaker="assistant") if hasattr(part, "speaker") else part


@pytest.mark.parametrize("text", TEXTS, ids=["NUL", "lone surrogate", "base64"])
async def test_parts_of_every_kind_are_returned_as_they_were_saved(conversations, open_store, text):
    messages: list[ModelMessage] = [
        *(ModelRequest(parts=[sample_dataclass(kind, text)], timestamp=AT) for kind in kinds(ModelRequestPart)),
        *(ModelResponse(parts=[part_of_model(kind, text)], timestamp=AT) for kind in kinds(ModelResponsePart)),
    ]
    assert len(messages) > 20
    await conversations.save(talk("c1", *messages))
    found = await open_store().load("c1")
    expected = ModelMessagesTypeAdapter.validate_python(ModelMessagesTypeAdapter.dump_python(messages, mode="json"))
    for message, stored in zip(expected, found.messages, strict=True):
        assert repr(stored) == repr(message)
