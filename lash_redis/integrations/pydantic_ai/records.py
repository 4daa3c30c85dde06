"""The record of a conversation in the checkpoint of its session."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError
from pydantic_ai.conversation import Conversation, ConversationTypeAdapter
from pydantic_ai.conversation_store import ConversationRecord

from lash_redis.errors import Corrupt
from lash_redis.integrations.ids import id_of
from lash_redis.models import HydratedSessionCheckpoint
from lash_redis.protocol.commands.commit import carried

FORMAT: Final = 1
"""The version of the stored record."""
_BEGINNING: Final = b'{"pydantic_ai":'
"""The first bytes of the execution state of a session that is a conversation."""


@dataclass(frozen=True, slots=True)
class Point:
    """The head and the checkpoint of a conversation's session, as they were read."""

    session_id: str
    revision: int
    commit_id: str
    """The id of its last commit, which is the `revision` of the SDK's record."""
    leaf: str | None
    checkpoint: HydratedSessionCheckpoint

    def record(self) -> ConversationRecord | None:
        """Decode the record; None if the session is no conversation.

        Raises:
            Corrupt: the record has another format, or is damaged.
        """
        stored = self.checkpoint.execution_state
        if stored is None or not stored.startswith(_BEGINNING):
            return None
        try:
            value: dict[str, Any] = json.loads(stored)
            if value["pydantic_ai"] != FORMAT:
                raise ValueError(f"it has format {value['pydantic_ai']}, and this version of lash_redis reads {FORMAT}")
            known = ConversationTypeAdapter.validate_python(value["conversation"])
            return ConversationRecord(
                conversation_id=self._conversation_id(known.conversation_id),
                head_id=None if self.leaf == value["ignored_leaf"] else self.leaf,
                usage=known.usage,
                deferred_tool_requests=known.deferred_tool_requests,
                scope=value["scope"],
                forked_from=value["forked_from"],
                forked_at=value["forked_at"],
                branches=value["branches"],
                revision=self.commit_id,
                updated_at=datetime.fromisoformat(value["updated_at"]),
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise Corrupt("the conversation record", self.session_id, str(error)) from error

    def _conversation_id(self, stored: str) -> str:
        """Return the id whose session this is. A session that the cache forked has the record of its source."""
        return stored if id_of(stored) == self.session_id else self.session_id

    def with_record(self, record: ConversationRecord, leaf: str | None) -> HydratedSessionCheckpoint:
        """Return the checkpoint for a commit that replaces the record. See `encode_record`."""
        return replace(carried(self.checkpoint), execution_state=encode_record(record, leaf))


def encode_record(record: ConversationRecord, leaf: str | None) -> bytes:
    """Encode a record without what the head of its session has: the newest entry and the revision.

    `leaf` is the leaf of the session after the commit. A session that has nodes has one, also if the conversation was
    branched from its beginning and has no history. The record then names that leaf, which is ignored.
    """
    known = Conversation(
        conversation_id=record.conversation_id,
        usage=record.usage,
        deferred_tool_requests=record.deferred_tool_requests,
    )
    value = {
        "pydantic_ai": FORMAT,
        "conversation": ConversationTypeAdapter.dump_python(known, mode="json"),
        "scope": record.scope,
        "forked_from": record.forked_from,
        "forked_at": record.forked_at,
        "branches": record.branches,
        "updated_at": record.updated_at.isoformat(),
        "ignored_leaf": leaf if record.head_id is None else None,
    }
    return json.dumps(value, separators=(",", ":")).encode()
