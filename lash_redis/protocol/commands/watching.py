"""Watching a session: what its head says, what is said on its channel, and which of it is news.

`lua/include/announcing.lua` says what a message holds. A message spares a look at the head where it is a plain step
forward from the head seen last; whatever else it is, it only says that it is time to look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from lash_redis._validate import require_int
from lash_redis.errors import Corrupt, InvalidRecord, SessionBindingMismatch, SessionDeleted, SessionGone, StoreError
from lash_redis.models import PersistedSessionRead, RuntimeCommitResult, SessionHeadMeta
from lash_redis.protocol.commands.calls import Command
from lash_redis.protocol.heads import RECEIPT_BYTES, RECEIPTS, TAG_BYTES, decode_facts, tag_of
from lash_redis.protocol.keys import SessionKeys

Since: TypeAlias = int | PersistedSessionRead | SessionHeadMeta | RuntimeCommitResult | None
"""A head that somebody has seen: its revision, or what a read, a look or a commit answered."""

DELETED: Final = b"deleted"
MAX_DIGITS: Final = 19


@dataclass(frozen=True, slots=True)
class HeadMark:
    """Which head it is. A failover may let a revision come round again, so the tag of its commit belongs to it."""

    revision: int
    tag: bytes | None = None
    """None where it is not known, or where there is no head."""


def mark_of(session_id: str, since: Since) -> HeadMark | None:
    """The head that `since` tells of."""
    if since is None:
        return None
    if isinstance(since, PersistedSessionRead | SessionHeadMeta) and since.session_id != session_id:
        raise SessionBindingMismatch(session_id, since.session_id)
    if isinstance(since, PersistedSessionRead | SessionHeadMeta | RuntimeCommitResult):
        return HeadMark(since.head_revision, tag_of(since.commit_id) if since.commit_id else None)
    if type(since) is not int:
        raise InvalidRecord("since", f"expected a revision, or what a read or commit answered, got {since!r}")
    return HeadMark(require_int("since", since, 0))


# What the head says


@dataclass(frozen=True, slots=True)
class Look:
    """A head at one moment; `mark` is None where there is none."""

    mark: HeadMark | None = None
    is_deleted: bool = False
    deadline_ms: int = 0
    """When the session expires, ms since 1970 on the server's clock; 0 for never."""
    server_ms: int | None = None
    """What that clock showed; None where the head does not tell."""

    @property
    def is_absent(self) -> bool:
        return self.mark is None and not self.is_deleted


def look_read(keys: SessionKeys) -> list[Command]:
    return [("HMGET", keys.head, "facts", "receipts", "deleted"), ("PTTL", keys.head)]


def look_reply(keys: SessionKeys, fields: list[bytes | None], left_ms: int) -> Look:
    """What a head says.

    Raises:
        Corrupt: it breaks a law.
    """
    stored, receipts, deleted = fields
    if stored is None:
        if receipts is not None:
            raise Corrupt("head", keys.head, "its facts are gone")
        return Look(is_deleted=deleted is not None)
    facts = decode_facts(stored, keys.head)
    if receipts is None or len(receipts) != RECEIPT_BYTES * min(RECEIPTS, facts.revision):
        raise Corrupt("head", keys.head, "its receipts are unreadable")
    mark = HeadMark(facts.revision, receipts[-RECEIPT_BYTES:][:TAG_BYTES])
    if not facts.deadline or left_ms < 0:
        return Look(mark)
    return Look(mark, deadline_ms=facts.deadline, server_ms=facts.deadline - left_ms)


def rest_read(keys: SessionKeys) -> Command:
    """How many keys there are that cannot be there without a head."""
    return ("EXISTS", *keys.own[1:])


# What is said on its channel


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a commit says on the channel of its session."""

    mark: HeadMark
    deadline_ms: int


def announcement(message: bytes) -> Announcement | None:
    """What a message says of a commit; None where it says nothing of the kind."""
    revision, _, rest = message.partition(b" ")
    deadline, _, tag = rest.partition(b" ")
    if not all(number.isdigit() and len(number) <= MAX_DIGITS for number in (revision, deadline)):
        return None
    if len(tag) != TAG_BYTES:
        return None
    return Announcement(HeadMark(int(revision), tag), int(deadline))


class Watched:
    """One session as somebody who watches it knows it.

    `must_look` says that the head may be another than the one seen last. A look begins with `begin_look` and ends with
    `looked`; what is heard in between counts from its answer on.
    """

    __slots__ = (
        "_heard", "_is_looking", "_told_deleted", "deadline_ms", "ended", "keys", "must_look", "news", "seen",
        "server_ms",
    )  # fmt: skip

    def __init__(self, keys: SessionKeys, since: HeadMark | None) -> None:
        self.keys = keys
        self.seen = since
        """The newest head known of; None before the first look, which then tells no news."""
        self.news: int | None = None
        """The revision to be told; a later one takes its place."""
        self.ended: StoreError | None = None
        """Why there is nothing more to watch."""
        self.deadline_ms = 0
        self.server_ms: int | None = None
        """The server's clock at the last look, where that told."""
        self.must_look = True
        self._is_looking = False
        self._heard: bytes | None = None
        self._told_deleted = False

    def subscribed(self) -> None:
        """What was said before went unheard."""
        self.must_look = True

    def lost(self) -> None:
        """What is said goes unheard until `subscribed`; a look under way comes to nothing."""
        self._is_looking, self._heard = False, None

    def heard(self, message: bytes) -> None:
        if message == DELETED:
            # A look tells whether it still is: an id without a marker may have begun anew.
            self._told_deleted = self.must_look = True
        elif self._is_looking:
            self._heard = message
        elif not self.must_look:
            self._hear(announcement(message))

    def _hear(self, said: Announcement | None) -> None:
        assert self.seen is not None, "looked at before"
        if said is not None and said.mark.revision == self.seen.revision + 1:
            self._see(said.mark, said.deadline_ms)
        elif said is None or said.mark != self.seen:
            self.must_look = True

    def begin_look(self) -> None:
        self.must_look, self._is_looking, self._heard = False, True, None

    def looked(self, found: Look | Corrupt) -> None:
        heard, self._heard, self._is_looking = self._heard, None, False
        self.server_ms = None if isinstance(found, Corrupt) else found.server_ms
        if isinstance(found, Corrupt):
            self.ended = found
        elif found.mark is not None:
            self._told_deleted = self._told_deleted and self.must_look  # heard since the look began
            if self.seen is None or self._is_seen(found.mark):
                self.seen, self.deadline_ms = found.mark, found.deadline_ms
            else:
                self._see(found.mark, found.deadline_ms)
        elif found.is_deleted or self._told_deleted:
            self.ended = SessionDeleted(self.keys.session_id)
        elif self.seen is not None and self.seen.revision:
            self.ended = SessionGone(self.seen.revision, 0, self.keys.session_id)
        else:
            self.seen = HeadMark(0)
        if heard is not None and self.ended is None:
            self.heard(heard)

    def _is_seen(self, mark: HeadMark) -> bool:
        assert self.seen is not None
        return mark == self.seen or (self.seen.tag is None and mark.revision == self.seen.revision)

    def _see(self, mark: HeadMark, deadline_ms: int) -> None:
        self.seen, self.news, self.deadline_ms = mark, mark.revision, deadline_ms
