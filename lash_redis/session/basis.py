"""The head that a commit builds on: its revision, and the values that stay if the commit leaves them out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lash_redis.models import RuntimeCommit
from lash_redis.options import SEEN
from lash_redis.protocol.commands.prepared_commit import leaves_out, require_expected_revision
from lash_redis.protocol.heads import NO_HEAD, HeadState
from lash_redis.session.reader import Reader
from lash_redis.session.seen import Seen


@dataclass(frozen=True, slots=True)
class Basis:
    """A commit with its expected revision, and what is known of the head that it builds on."""

    commit: RuntimeCommit
    seen: Seen
    head: HeadState
    """The values that stay if the commit leaves them out."""
    is_implied: bool = False
    """Whether the caller compares nothing. The revision only guards the values that the commit leaves out."""


async def basis_of(commit: RuntimeCommit, seen: Seen, reader: Reader) -> Basis:
    """Return the basis of a commit by a handle that knows `seen`.

    One round trip if the commit leaves out values that the handle does not know, else none.

    Raises:
        InvalidRecord: the expected revision is invalid.
        Corrupt, SessionEvicted: the head cannot be read.
    """
    require_expected_revision(commit)
    if commit.expected_head_revision is SEEN:
        revision, commit_id = seen.head or (0, None)
        commit = replace(commit, expected_head_revision=revision, builds_on=commit.builds_on or commit_id)
    elif seen.head is not None and commit.builds_on is None and commit.expected_head_revision == seen.head[0]:
        commit = replace(commit, builds_on=seen.head[1])
    if not leaves_out(commit) or commit.expected_head_revision == 0:
        return Basis(commit, seen, NO_HEAD)
    compares = commit.expected_head_revision is not None
    is_seen = not compares or (commit.expected_head_revision, commit.builds_on) == seen.head
    if seen.state is None or seen.head is None or not is_seen:
        seen = await reader.seen_head()
    known = (0, None) if seen.head is None else seen.head
    head = seen.state or NO_HEAD
    if not compares:
        return Basis(replace(commit, expected_head_revision=known[0], builds_on=known[1]), seen, head, is_implied=True)
    if commit.builds_on is None:
        # The values belong to this head alone. If there is none, no head matches: no commit builds on itself.
        commit = replace(commit, builds_on=known[1] or commit.commit_id)
    return Basis(commit, seen, head)
