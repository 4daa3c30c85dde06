"""Every error that this package raises. The class states whether anything was written, and what the caller can do.

`Refused`        nothing was written; change the call (reload, use another id, make the commit smaller).
`OutcomeUnknown` the reply was lost; send the same commit again, its receipt decides what happened.
`Corrupt`        stored bytes violate an invariant; nothing was written, and no value was made up.
`BackendError`   Redis refused or could not be reached; nothing of this call was applied.

Arguments are kept as attributes and in `args`, so every error can be pickled between processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from time import gmtime, strftime
from typing import Any


class StoreError(Exception):
    """Base class of every error of this package."""

    template = "{0}"

    def __str__(self) -> str:
        return self.template.format(*self.args)


def fresh(error: BaseException) -> BaseException:
    """Return a new error, caused by one that was stored, for a caller who has not received it yet.

    A stored object that is raised more than once collects the tracebacks of all callers.
    """
    if not isinstance(error, StoreError):
        return error
    new = copy(error)
    new.__cause__ = error
    return new


class Refused(StoreError):
    """Nothing was written. The same call fails again until its arguments or the stored session change."""


class SessionBindingMismatch(Refused):
    """A record or read of one session was passed to a store of another session. Call `cache.session` with its id."""

    template = "store is already bound to session `{0}` and cannot be reused for `{1}`"

    def __init__(self, bound_session_id: str, attempted_session_id: str) -> None:
        super().__init__(bound_session_id, attempted_session_id)
        self.bound_session_id = bound_session_id
        self.attempted_session_id = attempted_session_id


class HeadRevisionConflict(Refused):
    """The head is not the one that this commit was built on. Load the session, make a new commit, and send it.

    `RedisSessionStore.update` does that. `actual` may equal `expected`: a failover lost the commit that this one was
    built on, and another commit then got the same revision. `RuntimeCommit.builds_on` detects that.
    """

    def __init__(self, expected: int | None, actual: int) -> None:
        super().__init__(expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        expected = "None" if self.expected is None else f"Some({self.expected})"
        text = f"store head revision conflict: expected {expected}, actual {self.actual}"
        if self.expected == self.actual:
            return f"{text}; that revision is another commit than the one this was built on"
        return text


class SessionGone(HeadRevisionConflict):
    """The commit builds on a head that no longer exists: it expired, was evicted or deleted, or a failover lost it.

    A fork, an export or a watch of a session without a head raises it too, with that `session_id`.
    """

    def __init__(self, expected: int | None, actual: int = 0, session_id: str | None = None) -> None:
        super().__init__(expected, actual)
        self.args = (expected, actual, session_id)
        self.session_id = session_id

    def __str__(self) -> str:
        if self.session_id is not None:
            return f"there is no session {self.session_id!r}"
        return f"the session is gone (expired, evicted, deleted or lost): {super().__str__()}"


class NodesTombstoned(HeadRevisionConflict):
    """A replacement would bring back nodes: nodes were tombstoned after the read that its graph grew out of.

    A tombstone does not change the revision. Load the session, and make a new commit; `RedisSessionStore.update` does
    that. To bring a node back on purpose, replace the graph by one that was put together by hand.
    """

    def __init__(self, expected: int | None, actual: int, count: int = 1) -> None:
        super().__init__(expected, actual)
        self.args = (expected, actual, count)
        self.count = count
        """The number of nodes that were tombstoned since."""

    def __str__(self) -> str:
        return (
            f"{self.count} nodes were tombstoned after the read that the graph of this replacement grew out of; "
            "load the session, and make a new commit"
        )


class SessionExists(HeadRevisionConflict):
    """A fork or an import would create a session that exists already, or a copy of a thread would overwrite one.

    A commit to a session with documents raises it, and a write of documents to a session with a graph. Use another id.
    """

    def __str__(self) -> str:
        if self.actual:
            return f"the session exists already, at revision {self.actual}; use another id, or delete it first"
        return "the session exists already, with meta alone, or with documents; use another id, or delete it first"


class DocumentsChanged(Refused):
    """The stored documents are not as a write expects. Read them, and decide on a new write."""

    template = "the documents of session {0!r} are not as expected, but at revision {1}; read them, and write again"

    def __init__(self, session_id: str, revision: int, found: Mapping[bytes, bytes | None]) -> None:
        super().__init__(session_id, revision, found)
        self.session_id = session_id
        self.revision = revision
        """The number of writes to the documents by now; 0 if there are none."""
        self.found = found
        """What is stored under each name that is not as expected; None for nothing."""


class PartTaken(Refused):
    """A part of that name is stored with other content. Parts never change; use another name."""

    template = "session {0!r} has a part {1!r} with other content; use another name"

    def __init__(self, session_id: str, name: bytes) -> None:
        super().__init__(session_id, name)
        self.session_id = session_id
        self.name = name


class CommitIdReused(Refused):
    """An earlier commit had the same id and other content. Give each new commit a new `commit_id`."""

    template = (
        "commit id {1!r} of session {0!r} was used before, for a commit with other content; give each commit its own id"
    )

    def __init__(self, session_id: str, commit_id: str) -> None:
        super().__init__(session_id, commit_id)
        self.session_id = session_id
        self.commit_id = commit_id


class NodeIdCollision(Refused):
    """A new node has the id of a stored node (live, tombstoned or named as a parent), or of one in the same commit."""

    template = (
        "node id {0!r} is already in use, in the stored session or twice in this commit; use a new id, or leave out "
        "nodes that are stored"
    )

    def __init__(self, node_id: str) -> None:
        super().__init__(node_id)
        self.node_id = node_id


class InvalidParent(Refused):
    """A node's parent is neither a live stored node nor an earlier node of the same commit."""

    template = (
        "node {0!r}: expected as parent a live stored node or an earlier node of the commit, got {1!r}; order parents "
        "before their children"
    )

    def __init__(self, node_id: str, parent_node_id: str | None) -> None:
        super().__init__(node_id, parent_node_id)
        self.node_id = node_id
        self.parent_node_id = parent_node_id


class InvalidLeaf(Refused):
    """The leaf is not a live node, or is None in a session that has nodes."""

    template = "leaf {0!r} does not resolve to a live node"

    def __init__(self, leaf_node_id: str | None) -> None:
        super().__init__(leaf_node_id)
        self.leaf_node_id = leaf_node_id

    def __str__(self) -> str:
        hint = "; send new nodes with Append or ReplaceFull (for a PersistedSessionState: graph_replace_required)"
        if self.leaf_node_id is None:
            hint = "; pass leaf_node_id; to keep the leaf, pass that of the read (read.graph.leaf_node_id)"
        return super().__str__() + hint


class MissingBlob(Refused):
    """A commit names a component by its ref only, and neither the head nor a stored blob has that ref.

    Send the component's body. The bytes of a plugin snapshot or an execution state are stored with their session and
    revision. Their refs of an earlier revision, or of another session, therefore identify nothing.
    """

    template = "{1} names blob {0}, which is not stored; send the component's body"

    def __init__(self, ref: str, component: str) -> None:
        super().__init__(ref, component)
        self.ref = ref
        self.component = component


class SessionDeleted(Refused):
    """The session was deleted. Writes to its id are refused until the deletion marker expires.

    `StoreOptions.deletion_marker_ttl` sets when that is.
    """

    template = "session {0!r} was deleted"

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id)
        self.session_id = session_id


class OwnerMismatch(Refused):
    """The session does not belong to the owner for whom the handle was made. Use an id of the owner's own sessions.

    `owner` is the one that the handle was made for. The error does not contain the session's own owner.
    """

    template = "session {0!r} does not belong to owner {1!r}; use another session id"

    def __init__(self, session_id: str, owner: str) -> None:
        super().__init__(session_id, owner)
        self.session_id = session_id
        self.owner = owner


class LeaseBusy(Refused):
    """Another claim holds the session's lease. Retry later, or give `acquire_lease` a longer `wait`.

    `waited` is the `wait` of that call, in seconds. The lease ends at `deadline` unless its owner renews it: seconds
    since 1970, by the server's clock. `is_own`: its owner has the name that the caller gave. A worker that restarted
    takes over its own lease with `reenter=True`.
    """

    def __init__(
        self, session_id: str, owner: str, generation: int = 0, deadline: float = 0.0, is_own: bool = False
    ) -> None:
        super().__init__(session_id, owner, generation, deadline, is_own)
        self.session_id = session_id
        self.owner = owner
        self.generation = generation
        self.deadline = deadline
        self.is_own = is_own
        self.waited = 0.0

    def __str__(self) -> str:
        until = f" until {strftime('%Y-%m-%dT%H:%M:%SZ', gmtime(self.deadline))}" if self.deadline else ""
        text = f"the lease of session {self.session_id!r} is held by {self.owner!r}{until}"
        if self.waited:
            text += f", still after {self.waited:g} seconds; retry later, or pass a longer `wait`"
        else:
            text += "; retry later, or pass `wait`"
        if self.is_own:
            return f"{text}; if this worker restarted and lost that lease, pass reenter=True to take it over"
        return text


class LeaseLost(Refused):
    """The caller no longer holds the lease. Acquire it again, and load the session before the next write.

    `reason` is `expired`, `taken` (by another claim), `released` or `gone`. `gone` means that no lease is stored,
    because the session expired or a failover lost it.

    A commit that raises it was not applied if `revision` is None. Otherwise an earlier attempt of the same commit was
    applied, at that revision.
    """

    template = "the lease of session {0!r} is no longer held by {1!r}: {2}; acquire it again"

    def __init__(self, session_id: str, owner: str, reason: str = "expired", revision: int | None = None) -> None:
        super().__init__(session_id, owner, reason, revision)
        self.session_id = session_id
        self.owner = owner
        self.reason = reason
        self.revision = revision


class StreamBusy(Refused):
    """The generation has a stream already, or it has ended. Give each attempt to produce an answer its own generation.

    `state` is that of the stream: `running`, `finished`, `failed` or `lost`.
    """

    template = "generation {1!r} of session {0!r} has a stream, which is {2}; use a new generation id"

    def __init__(self, session_id: str, generation_id: str, state: str) -> None:
        super().__init__(session_id, generation_id, state)
        self.session_id = session_id
        self.generation_id = generation_id
        self.state = state


class StreamGap(Refused):
    """Events that the follower has not read were dropped, because the stream exceeded its bounds.

    Reload what is shown, or follow again with `after=oldest`, which continues with the oldest event that is stored.
    """

    template = (
        "events of generation {1!r} of session {0!r} after {3!r} were dropped; reload, or follow again with after={2!r}"
    )

    def __init__(self, session_id: str, generation_id: str, oldest: str, after: str | None = None) -> None:
        super().__init__(session_id, generation_id, oldest, after)
        self.session_id = session_id
        self.generation_id = generation_id
        self.oldest = oldest
        """The cursor behind which every event is stored."""
        self.after = after
        """The cursor of the last event that the follower has; None if it has none."""


class StreamFailed(Refused):
    """The stream did not finish: its producer raised an error, or it is lost. Start another generation.

    A follower gets it after the last event, and a producer from a write to its stream. `state` is `failed` or `lost`. A
    lost stream had no sign of life of its producer for its ttl; it stays lost, even if the producer continues.
    """

    template = "the stream of generation {1!r} of session {0!r} is {2}; start another generation"

    def __init__(self, session_id: str, generation_id: str, state: str) -> None:
        super().__init__(session_id, generation_id, state)
        self.session_id = session_id
        self.generation_id = generation_id
        self.state = state


class StreamGone(Refused):
    """The generation has no stream: it is unknown, was deleted, or expired `keep` seconds after its end.

    If the stream has finished, load the session: the turn is stored.
    """

    template = "generation {1!r} of session {0!r} has no stream (unknown, or expired); load the session"

    def __init__(self, session_id: str, generation_id: str) -> None:
        super().__init__(session_id, generation_id)
        self.session_id = session_id
        self.generation_id = generation_id


class CommitTooLarge(Refused):
    """A commit, blob, pending input or event exceeds a limit of its call, of `StoreOptions` or of Redis.

    Make it smaller, or raise the limit. `what` names the limit. A session with 64 streams raises it, too: wait until
    one of them expires.
    """

    template = "{0}: expected at most {2}, got {1}"

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(what, size, limit)
        self.what = what
        self.size = size
        self.limit = limit


class InputIdReused(Refused):
    """Another input of the session, pending or consumed, has the same id. Give each input an id of its own."""

    template = (
        "input id {1!r} of session {0!r} was used before, for another input; give each input its own id, or leave it "
        "out"
    )

    def __init__(self, session_id: str, input_id: str) -> None:
        super().__init__(session_id, input_id)
        self.session_id = session_id
        self.input_id = input_id


class InputNotPending(Refused):
    """A commit consumes an input that is not pending: another commit consumed it, or no worker enqueued it.

    Load the inputs again by `pending_inputs`, and make a commit for those that are still pending.
    """

    template = (
        "input {1!r} of session {0!r} is not pending: another commit consumed it, or it was never enqueued; "
        "call pending_inputs, and make a new commit"
    )

    def __init__(self, session_id: str, input_id: str) -> None:
        super().__init__(session_id, input_id)
        self.session_id = session_id
        self.input_id = input_id


class InputsFull(Refused):
    """The session has too many pending inputs for one more. Enqueue again after a commit has consumed some.

    `count` and `size` are the number and the bytes of those that are pending, `max_count` and `max_size` the limits.
    """

    template = (
        "session {0!r} has {1} pending inputs (at most {2}) of {3} bytes (at most {4}, see "
        "StoreOptions.max_pending_input_bytes); enqueue again after a commit has consumed some"
    )

    def __init__(self, session_id: str, count: int, max_count: int, size: int, max_size: int) -> None:
        super().__init__(session_id, count, max_count, size, max_size)
        self.session_id = session_id
        self.count = count
        self.max_count = max_count
        self.size = size
        self.max_size = max_size


class UnsupportedReadScope(Refused):
    """`load_session` got another value than a `FullGraph` or an `ActivePath`."""

    template = "store does not support read scope {0!r}"

    def __init__(self, scope: Any) -> None:
        super().__init__(scope)
        self.scope = scope


class InvalidRecord(Refused, ValueError):
    """An argument or a field of a record has an invalid value. `field` is the path to it."""

    template = "{0}: {1}"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class LayoutMismatch(Refused):
    """The namespace is stored with another layout than this client uses. Pass the `StoreOptions.shards` it has."""

    template = "namespace {0!r}: {1}"

    def __init__(self, namespace: str, reason: str) -> None:
        super().__init__(namespace, reason)
        self.namespace = namespace
        self.reason = reason


class OutcomeUnknown(StoreError):
    """The reply to a write was lost: it was applied once or not at all. Make the same call again to find out.

    Four calls make something new each time. After `update`, send the error's `commit` again with
    `commit_runtime_state`. After `acquire_lease`, pass the error's `token`. After `enqueue_input`, pass the error's
    `input_id`. After `fork`, check whether the new session exists.
    """

    commit: Any = None
    """The commit whose outcome is unknown, from `update`; else None."""
    token: str | None = None
    """The token of the claim whose outcome is unknown, from `acquire_lease`; else None."""
    input_id: str | None = None
    """The id of the input whose outcome is unknown, from `enqueue_input`; else None."""


class Corrupt(StoreError):
    """Stored bytes violate an invariant. `key` is the Redis key; nothing was written."""

    template = "{0} at {1}: {2}"

    def __init__(self, kind: str, key: str, reason: str) -> None:
        super().__init__(kind, key, reason)
        self.kind = kind
        self.key = key
        self.reason = reason


class SessionEvicted(Corrupt):
    """Some keys of the session are missing (evicted, or deleted by hand) while others remain."""


class BackendError(StoreError):
    """Redis refused or could not be reached; nothing of this call was applied."""

    template = "store backend error: {0}"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
