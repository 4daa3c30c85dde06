"""The commands of pending inputs: enqueue one, read them all. A commit consumes them (see `commit`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lash_redis.errors import CommitTooLarge, InputIdReused, InputsFull
from lash_redis.models import PendingInput
from lash_redis.options import StoreOptions
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, OwnerMoved, ScriptCall, status
from lash_redis.protocol.commands.reads import compare_sizes, size_read
from lash_redis.protocol.inputs import MAX_PENDING_INPUTS, decode_inputs, decode_record, input_field
from lash_redis.protocol.keys import SessionKeys


def enqueue_call(
    keys: SessionKeys, input_id: str, record: bytes, owner: str, ttl_ms: int, options: StoreOptions
) -> ScriptCall:
    """Add a pending input. `owner`: the one that a session without a commit is expected to have, empty for none.

    Raises:
        CommitTooLarge: the input alone is over the limit of `options`.
    """
    if len(record) > options.max_pending_input_bytes:
        what = "the bytes of an input (StoreOptions.max_pending_input_bytes)"
        raise CommitTooLarge(what, len(record), options.max_pending_input_bytes)
    return ScriptCall(
        scripts.ENQUEUE,
        keys.listed(owner),
        [
            keys.session_id,
            input_field(input_id),
            record,
            MAX_PENDING_INPUTS,
            options.max_pending_input_bytes,
            ttl_ms,
            options.blob_grace_ms,
            keys.access,
            owner,
        ],
    )


def enqueue_reply(call: ScriptCall, keys: SessionKeys, reply: Any) -> PendingInput | OwnerMoved:
    """Return the input as it is stored, or the owner to send the call with.

    Raises:
        InputIdReused: the id belongs to another input.
        InputsFull: the session has too many pending inputs.
    """
    word, (input_id, item) = status(call, reply, keys), decode_record(call.args[2], keys.head)
    match word:
        case "owner":
            return OwnerMoved(reply[2].decode())
        case "reused":
            raise InputIdReused(keys.session_id, input_id)
        case "full":
            raise InputsFull(keys.session_id, reply[2], MAX_PENDING_INPUTS, reply[3], call.args[4])
    return PendingInput(input_id, item, int(reply[2]) / 1000 if word == "pending" else None)


def is_new(reply: Sequence[Any]) -> bool:
    """Whether this call added the input. Otherwise an earlier one did."""
    return bool(reply[0] == b"pending" and reply[3] == 1)


def pending_read(keys: SessionKeys) -> list[Command]:
    return [("HGETALL", keys.head), *size_read(keys)]


def pending_reply(keys: SessionKeys, replies: Sequence[Any]) -> list[PendingInput]:
    """Decode the pending inputs of a session, the first one first; empty if the session is another owner's.

    Raises:
        SessionEvicted: some of the session's keys are missing, others remain.
        Corrupt: the stored data violates an invariant.
    """
    fields, *sizes = replies
    return decode_inputs(fields, keys.head) if compare_sizes(keys, fields, sizes) else []
