"""Watch a session: decode its head and its notifications, and decide which revisions are new.

`lua/include/announcing.lua` documents the notifications. A notification makes a poll of the head unnecessary if it is
exactly one revision ahead of the head seen last. Any other message on the channel only triggers a poll.
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
MAX_DIGITS: Final = 19


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


# The channel


@dataclass(frozen=True, slots=True)
class Notification:
    """What a commit publishes on the channel of its session."""

    mark: HeadMark
    deadline_ms: int


def decode_notification(message: bytes) -> Notification | None:
    """Decode the notification of a commit; None if `message` is anything else."""
    revision, _, rest = message.partition(b" ")
    deadline, _, tag = rest.partition(b" ")
    if not all(number.isdigit() and len(number) <= MAX_DIGITS for number in (revision, deadline)):
        return None
    if len(tag) != TAG_BYTES:
        return None
    return Notification(HeadMark(int(revision), tag), int(deadline))


class WatchState:
    """What a watch knows of one session: the head seen last, the revision to report, and whether a poll is due.

    The owner reports four events: `on_subscribed`, `on_disconnected`, `on_message`, and a poll from `begin_poll` to
    `end_poll`. A message that arrives during a poll is kept and applied after the poll's reply.
    """

    __slots__ = (
        "_is_deletion_published", "_is_polling", "_message", "deadline_ms", "ended", "keys", "needs_poll",
        "pending_revision", "seen", "server_ms",
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
        self._is_polling = False
        self._message: bytes | None = None
        """The last message that arrived during the current poll."""
        self._is_deletion_published = False

    def on_subscribed(self) -> None:
        """Request a poll: notifications before the subscription did not arrive."""
        self.needs_poll = True

    def on_disconnected(self) -> None:
        """Drop a poll in flight and its message. Notifications are missed until `on_subscribed`."""
        self._is_polling, self._message = False, None

    def on_message(self, message: bytes) -> None:
        """Apply a message from the channel. It sets `pending_revision`, requests a poll, or changes nothing."""
        if message == DELETED:
            # The poll decides: without a deletion marker, a new session may already have started under the same id.
            self._is_deletion_published = self.needs_poll = True
        elif self._is_polling:
            self._message = message
        elif not self.needs_poll:
            self._apply(decode_notification(message))

    def _apply(self, notification: Notification | None) -> None:
        assert self.seen is not None, "a poll came first"
        # A notification does not contain the session's owner. So for an owner, a poll decides on the first one.
        is_usable = self.seen.revision > 0 or not self.keys.access
        if notification is not None and is_usable and notification.mark.revision == self.seen.revision + 1:
            self._advance(notification.mark, notification.deadline_ms)
        elif notification is None or notification.mark != self.seen:
            self.needs_poll = True

    def begin_poll(self) -> None:
        self.needs_poll, self._is_polling, self._message = False, True, None

    def end_poll(self, result: HeadPoll | Corrupt) -> None:
        """Apply the result of a poll, and then the message that arrived during it."""
        message, self._message, self._is_polling = self._message, None, False
        self.server_ms = None if isinstance(result, Corrupt) else result.server_ms
        if isinstance(result, Corrupt):
            self.ended = result
        elif result.mark is not None:
            # `needs_poll` set again means that the deletion was published during the poll.
            self._is_deletion_published = self._is_deletion_published and self.needs_poll
            if self.seen is None or self._is_seen(result.mark):
                self.seen, self.deadline_ms = result.mark, result.deadline_ms
            else:
                self._advance(result.mark, result.deadline_ms)
        elif result.is_deleted or self._is_deletion_published:
            self.ended = SessionDeleted(self.keys.session_id)
        elif self.seen is not None and self.seen.revision:
            self.ended = SessionGone(self.seen.revision, 0, self.keys.session_id)
        else:
            self.seen = HeadMark(0)
        if message is not None and self.ended is None:
            self.on_message(message)

    def _is_seen(self, mark: HeadMark) -> bool:
        assert self.seen is not None
        return mark == self.seen or (self.seen.tag is None and mark.revision == self.seen.revision)

    def _advance(self, mark: HeadMark, deadline_ms: int) -> None:
        self.seen, self.pending_revision, self.deadline_ms = mark, mark.revision, deadline_ms
