"""Every error this package raises. A class answers two questions: was anything written, and what do I do now?

`Refused`        nothing was written; the call itself must change (reload, another id, a smaller commit).
`OutcomeUnknown` the reply was lost; send the same commit again, its receipt settles what happened.
`Corrupt`        stored bytes break a law; nothing was written and nothing was guessed.
`BackendError`   Redis refused or could not be reached; nothing of this call was applied.

Arguments are kept as attributes and in `args`, so every error survives pickling between processes.
"""

from __future__ import annotations

from typing import Any


class StoreError(Exception):
    """Base of every error of this package."""

    template = "{0}"

    def __str__(self) -> str:
        return self.template.format(*self.args)


class Refused(StoreError):
    """Nothing was written, and the same call will be refused again until something changes."""


class SessionBindingMismatch(Refused):
    """A record for one session was given to a store that is bound to another."""

    template = "store is already bound to session `{0}` and cannot be reused for `{1}`"

    def __init__(self, bound_session_id: str, attempted_session_id: str) -> None:
        super().__init__(bound_session_id, attempted_session_id)
        self.bound_session_id = bound_session_id
        self.attempted_session_id = attempted_session_id


class HeadRevisionConflict(Refused):
    """The head is not the one this commit was built on: load again, decide again, commit again.

    `actual` may equal `expected`: then the revision came round again with another content (a failover lost the one
    this commit was built on), seen by `RuntimeCommit.builds_on`.
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

    Or there is none to fork or export: then `session_id` says of which session.
    """

    def __init__(self, expected: int | None, actual: int = 0, session_id: str | None = None) -> None:
        super().__init__(expected, actual)
        self.args = (expected, actual, session_id)
        self.session_id = session_id

    def __str__(self) -> str:
        if self.session_id is not None:
            return f"there is no session {self.session_id!r}"
        return f"the session is gone (expired, evicted, deleted or lost): {super().__str__()}"


class SessionExists(HeadRevisionConflict):
    """A session was to begin under this id (a fork, an import), and there is one already."""

    def __str__(self) -> str:
        return f"the session exists already, at revision {self.actual}"


class CommitIdReused(Refused):
    """A commit with this id was made before and meant something else. A new commit needs a new `commit_id`."""

    template = "commit id {1!r} of session {0!r} was used before for a commit with another meaning"

    def __init__(self, session_id: str, commit_id: str) -> None:
        super().__init__(session_id, commit_id)
        self.session_id = session_id
        self.commit_id = commit_id


class NodeIdCollision(Refused):
    """A node with this id is already stored (live, tombstoned, or named as a parent), or occurs twice in the commit."""

    template = "node id {0!r} is taken"

    def __init__(self, node_id: str) -> None:
        super().__init__(node_id)
        self.node_id = node_id


class InvalidParent(Refused):
    """A node's parent is neither a live stored node nor an earlier node of the same commit."""

    template = "node {0!r} names the parent {1!r}, which is neither a live node nor an earlier node of the commit"

    def __init__(self, node_id: str, parent_node_id: str | None) -> None:
        super().__init__(node_id, parent_node_id)
        self.node_id = node_id
        self.parent_node_id = parent_node_id


class InvalidLeaf(Refused):
    """The leaf does not resolve to a live node, or is None in a session that has nodes."""

    template = "leaf {0!r} does not resolve to a live node"

    def __init__(self, leaf_node_id: str | None) -> None:
        super().__init__(leaf_node_id)
        self.leaf_node_id = leaf_node_id

    def __str__(self) -> str:
        hint = "; nodes are sent by Append or ReplaceFull (for a PersistedSessionState: graph_replace_required)"
        if self.leaf_node_id is None:
            hint = "; name one by leaf_node_id, the read's (read.graph.leaf_node_id) to leave it where it is"
        return super().__str__() + hint


class MissingBlob(Refused):
    """A commit names a component by its ref alone, and that is neither the head's own nor the ref of a stored blob.

    The ref of a plugin snapshot or an execution state of an earlier revision, or of another session, finds nothing:
    their bytes live with their session and revision. Send the component's body.
    """

    template = "{1} names blob {0}, which is not stored"

    def __init__(self, ref: str, component: str) -> None:
        super().__init__(ref, component)
        self.ref = ref
        self.component = component


class SessionDeleted(Refused):
    """The session was deleted; its id takes no writes while the deletion marker lives."""

    template = "session {0!r} was deleted"

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id)
        self.session_id = session_id


class LeaseBusy(Refused):
    """Somebody else holds the session's lease, unless they renew it until `deadline`.

    That is seconds since 1970 by the server's clock.
    """

    template = "the lease of session {0!r} is held by {1!r}"

    def __init__(self, session_id: str, owner: str, generation: int = 0, deadline: float = 0.0) -> None:
        super().__init__(session_id, owner, generation, deadline)
        self.session_id = session_id
        self.owner = owner
        self.generation = generation
        self.deadline = deadline


class LeaseLost(Refused):
    """The lease is not held any more.

    `reason` is `expired`, `taken` (by another claim), `released`, or `gone`: there is none, because the session expired
    or a failover lost it.

    From a commit: `revision` is not None where an earlier attempt of this very commit was applied, at that revision;
    otherwise nothing of it was.
    """

    template = "the lease of session {0!r} is no longer held by {1!r}: {2}"

    def __init__(self, session_id: str, owner: str, reason: str = "expired", revision: int | None = None) -> None:
        super().__init__(session_id, owner, reason, revision)
        self.session_id = session_id
        self.owner = owner
        self.reason = reason
        self.revision = revision


class CommitTooLarge(Refused):
    """A commit or blob exceeds a limit of `StoreOptions` or of Redis itself; sending it again fails again."""

    template = "{0}: {1}, over the limit of {2}"

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(what, size, limit)
        self.what = what
        self.size = size
        self.limit = limit


class UnsupportedReadScope(Refused):
    """`load_session` was given something that is no read scope."""

    template = "store does not support read scope {0!r}"

    def __init__(self, scope: Any) -> None:
        super().__init__(scope)
        self.scope = scope


class InvalidRecord(Refused, ValueError):
    """A value given to this package is not what its field takes. `field` is the path to it."""

    template = "{0}: {1}"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason


class LayoutMismatch(Refused):
    """The namespace was laid out otherwise than this client would write it."""

    template = "namespace {0!r}: {1}"

    def __init__(self, namespace: str, reason: str) -> None:
        super().__init__(namespace, reason)
        self.namespace = namespace
        self.reason = reason


class OutcomeUnknown(StoreError):
    """The reply to a write was lost: it was applied once or not at all. Make the same call again to know.

    Not so where a call makes something new each time: after `update` send its `commit` again (an attribute of this
    error), after `fork` see whether the new session is there.
    """

    commit: Any = None


class Corrupt(StoreError):
    """Stored bytes break a law. `key` names where; nothing was written."""

    template = "{0} at {1}: {2}"

    def __init__(self, kind: str, key: str, reason: str) -> None:
        super().__init__(kind, key, reason)
        self.kind = kind
        self.key = key
        self.reason = reason


class SessionEvicted(Corrupt):
    """Part of the session's keys are gone (evicted or deleted by hand) while others remain."""


class BackendError(StoreError):
    """Redis refused or could not be reached; nothing of this call was applied."""

    template = "store backend error: {0}"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
