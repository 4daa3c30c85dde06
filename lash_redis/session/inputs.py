"""The pending inputs of one session: enqueue one, load them all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

from lash_redis._validate import require_id
from lash_redis.errors import BackendError, OutcomeUnknown
from lash_redis.models import PendingInput
from lash_redis.options import Durability
from lash_redis.protocol import commands
from lash_redis.protocol.inputs import encode_input
from lash_redis.session.namespace import Namespace
from lash_redis.session.reader import MAX_ATTEMPTS, Reader
from lash_redis.transport.failures import Earlier


class Inputs:
    """The pending inputs of one session."""

    def __init__(self, namespace: Namespace, reader: Reader) -> None:
        self._namespace = namespace
        self._keys = reader.keys

    async def enqueue(
        self, item: Any, input_id: str | None, owner: str, durability: Durability | None
    ) -> tuple[PendingInput, str]:
        """`RedisSessionStore.enqueue_input`. `owner` is the one that the session is expected to have, empty for none.

        It also returns the owner that the session has.
        """
        namespace, earlier = self._namespace, Earlier()
        input_id = uuid4().hex if input_id is None else require_id("input_id", input_id)
        record = encode_input(input_id, item, "item")
        for _ in range(MAX_ATTEMPTS):
            call = commands.inputs.enqueue_call(
                self._keys, input_id, record, owner, namespace.ttl_ms, namespace.options
            )
            try:
                reply, durable = await namespace.run_durably(call, durability, earlier)
            except OutcomeUnknown as error:
                error.input_id = input_id
                raise
            outcome = commands.inputs.enqueue_reply(call, self._keys, reply)
            if not isinstance(outcome, commands.calls.OwnerMoved):
                if durability is not None and not commands.inputs.is_new(reply):
                    durable = await namespace.confirm(self._keys, durability)
                return replace(outcome, durable=durable), owner
            owner = outcome.owner
        raise BackendError(
            f"the owner of session {self._keys.session_id!r} changed during each of {MAX_ATTEMPTS} attempts to enqueue "
            "an input; retry later"
        )

    async def pending(self) -> list[PendingInput]:
        """`RedisSessionStore.pending_inputs`."""
        trip = commands.inputs.pending_read(self._keys)
        return commands.inputs.pending_reply(self._keys, await self._namespace.read(trip, atomic=True))
