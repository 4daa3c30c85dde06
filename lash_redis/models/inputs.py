"""Pending input: what a user sent while a turn was running."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from lash_redis.models.lease import Seconds
from lash_redis.models.wire import Id, Json, Record, Rule


@dataclass(frozen=True, slots=True)
class PendingInput(Record):
    """An input that waits for a turn, until a commit consumes it."""

    input_id: Id
    """The id of the input, unique in its session."""
    item: Json
    """The content: any JSON, such as a message."""
    enqueued_at: Seconds | None = None
    """The time of the first `enqueue_input` in seconds since 1970, by the server's clock.

    None only in the result of an `enqueue_input` that was sent again after a commit had consumed the input.
    """
    durable: Annotated[bool | None, Rule.IN_MEMORY] = field(default=None, compare=False)
    """Whether the durability that `enqueue_input` asked for was confirmed in time; None if it asked for none.

    None, too, in the result of `pending_inputs`. It is not part of the JSON, and is not compared.
    """
