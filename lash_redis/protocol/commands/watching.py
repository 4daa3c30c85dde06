"""Watch a session: decode its head, and decide which revisions are new.

A message on the session's channel only triggers a poll of the head. The server delivers the messages of all its
databases on one channel, and every account with the right to publish can send any. So what is reported is what a poll
read from the keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from lash_redis._validate import require_int
from lash_redis.errors import Corrupt, InvalidRecord, SessionBindingMismatch, SessionDeleted, SessionGone, StoreError
from lash_redis.models import PersistedSessionRead, RuntimeCommitResult, SessionHeadMeta
from lash_redis.protocol.commands.calls import Command, is_foreign
from lash_redis.protocol.heads import RECEIPT_BYTES, RECEIPTS, TAG_BYTES, decode_facts, tag_of
from lash_redis.protocol.keys import SessionKeys

Since: TypeAlias = int | PersistedSessionRead | SessionHeadMeta | RuntimeCommitResult | None
"""A head that the caller has seen: its revision, or the result of a load, of `load_head` or of a commit."""

DELETED: Final = b"deleted"
"""The message of a deletion (`lua/include/announcing.lua`)."""


@dataclass(frozen=True, slots=True)
class HeadMark:
    """The identity of a head. A failover can reuse a revision, so the tag of the head's commit is part of it."""

    revision: int
    tag: bytes | None = None
    """None if the tag is not known, or if there is no head."""


def mark_of(session_id: str, since: Since) -> HeadMark | None:
    """Return the mark of the head that `since` identifies; None if `since` is None.

    Raises:
        InvalidRecord: `since` has another type, or is a negative revision.
        SessionBindingMismatch: `since` is of another session.
    """
    if since is None:
        return None
    if isinstance(since, PersistedSessionRead | SessionHeadMeta) and since.session_id != session_id:
        raise SessionBindingMismatch(session_id, since.session_id)
    if isinstance(since, PersistedSessionRead | SessionHeadMeta | RuntimeCommitResult):
        return HeadMark(since.head_revision, tag_of(since.commit_id) if since.commit_id else None)
    if type(since) is not int:
        raise InvalidRecord("since", f"expected a revision, or the result of a load or commit, got {since!r}")
    return HeadMark(require_int("since", since, 0))


# The head


@dataclass(frozen=True, slots=True)
class HeadPoll:
    """The state of a head at one moment. `mark` is None if there is no head."""

    mark: HeadMark | None = None
    is_deleted: bool = False
    is_foreign: bool = False
    """Whether the session is another's than the owner for whom it is watched, so that it counts as absent."""
    deadline_ms: int = 0
    """When the session expires, in ms since 1970 by the server's clock; 0 for never."""
    server_ms: int | None = None
    """The server's clock at the poll, in ms since 1970; None if the head has no deadline to compute it from."""

    @property
    def is_absent(self) -> bool:
        return self.mark is None and not self.is_deleted and not self.is_foreign


def poll_read(keys: SessionKeys) -> list[Command]:
    return [("HMGET", keys.head, "facts", "receipts", "deleted", "owner"), ("PTTL", keys.head)]


def poll_reply(keys: SessionKeys, fields: list[bytes | None], left_ms: int) -> HeadPoll:
    """Decode the replies to `poll_read`.

    Raises:
        Corrupt: the facts or the receipts are missing or unreadable.
    """
    stored, receipts, deleted, owner = fields
    if is_foreign(keys, owner, stored):
        return HeadPoll(is_foreign=True)
    if stored is None:
        if receipts is not None:
            raise Corrupt("head", keys.head, "its facts are gone")
        return HeadPoll(is_deleted=deleted is not None)
    facts = decode_facts(stored, keys.head)
    if receipts is None or len(receipts) != RECEIPT_BYTES * min(RECEIPTS, facts.revision):
        raise Corrupt("head", keys.head, "its receipts are unreadable")
    mark = HeadMark(facts.revision, receipts[-RECEIPT_BYTES:][:TAG_BYTES])
    if not facts.deadline or left_ms < 0:
        return HeadPoll(mark)
    return HeadPoll(mark, deadline_ms=facts.deadline, server_ms=facts.deadline - left_ms)


def remaining_keys_read(keys: SessionKeys) -> Command:
    """Count the stored keys that cannot exist without a head."""
    return ("EXISTS", *keys.own[1:])


class WatchState:
    """What a watch knows of one session: the head seen last, the revision to report, and whether a poll is due.

    The subscriber reports three events: `on_subscribed`, `on_message`, and a poll from `begin_poll` to `end_poll`. One
    poll answers all messages before it. A message that arrives during a poll requests another one.
    """

    __slots__ = (
        "_is_deletion_published", "deadline_ms", "ended", "keys", "needs_poll", "pending_revision", "seen", "server_ms",
    )  # fmt: skip

    def __init__(self, keys: SessionKeys, since: HeadMark | None) -> None:
        self.keys = keys
        self.seen = since
        """The newest known head; None before the first poll, which then only sets it and reports nothing."""
        self.pending_revision: int | None = None
        """The revision to report next. A later revision replaces it."""
        self.ended: StoreError | None = None
        """Why the session is no longer watched."""
        self.deadline_ms = 0
        """When the session expires, in ms since 1970 by the server's clock; 0 for never."""
        self.server_ms: int | None = None
        """The server's clock at the last poll; None if that poll could not compute it."""
        self.needs_poll = True
        """Whether the head may differ from the one seen last."""
        self._is_deletion_published = False
        """Whether a deletion was published and no later poll found the head."""

    def on_subscribed(self) -> None:
        """Request a poll: messages before the subscription did not arrive."""
        self.needs_poll = True

    def on_message(self, message: bytes) -> None:
        """Request a poll. Once the head is gone, `message` distinguishes a deletion without a marker from an expiry."""
        self.needs_poll = True
        self._is_deletion_published = self._is_deletion_published or message == DELETED

    def begin_poll(self) -> None:
        self.needs_poll = False

    def end_poll(self, result: HeadPoll | Corrupt) -> None:
        """Apply the result of a poll. `needs_poll` set again means that a message arrived during the poll."""
        known = 0 if self.seen is None else self.seen.revision
        self.server_ms = None if isinstance(result, Corrupt) else result.server_ms
        if isinstance(result, Corrupt):
            self.ended = result
        elif result.mark is not None:
            self._is_deletion_published = self._is_deletion_published and self.needs_poll
            if self.seen is None or self._is_seen(result.mark):
                self.seen, self.deadline_ms = result.mark, result.deadline_ms
            else:
                self._advance(result.mark, result.deadline_ms)
        elif result.is_deleted or (self._is_deletion_published and known):
            self.ended = SessionDeleted(self.keys.session_id)
        elif known:
            self.ended = SessionGone(known, 0, self.keys.session_id)
        else:
            self.seen, self._is_deletion_published = HeadMark(0), False

    def _is_seen(self, mark: HeadMark) -> bool:
        assert self.seen is not None
        return mark == self.seen or (self.seen.tag is None and mark.revision == self.seen.revision)

    def _advance(self, mark: HeadMark, deadline_ms: int) -> None:
        self.seen, self.pending_revision, self.deadline_ms = mark, mark.revision, deadline_ms
