"""The commands of leases: acquire, renew, release, and read the holder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from lash_redis._validate import require_id, require_type
from lash_redis.errors import InvalidRecord, LeaseBusy, LeaseLost, SessionBindingMismatch
from lash_redis.models import LeaseClaim, LeaseInfo, RuntimeCommit
from lash_redis.protocol import scripts
from lash_redis.protocol.commands.calls import Command, ScriptCall, is_foreign, status
from lash_redis.protocol.keys import SessionKeys
from lash_redis.protocol.leases import decode_lease

REMAINS_MS: Final = 86_400_000
"""Milliseconds by which a head that has only a lease outlives it. Such a session never had a commit."""

_TOKEN = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Acquired:
    """The result of acquiring or renewing a lease. `until_ms`: the session's own deadline, 0 for never."""

    generation: int
    deadline_ms: int
    until_ms: int
    displaced: LeaseInfo | None = None


def checked_token(field: str, token: object) -> str:
    """Return `token`; raise InvalidRecord unless it is a string of 1 to 128 visible ASCII characters."""
    if type(token) is not str or not _TOKEN.fullmatch(token):
        raise InvalidRecord(field, f"expected 1 to 128 visible ASCII characters, got {token!r}")
    return token


def owner_of(token: str) -> str:
    """Return the worker name of a claim without an owner. Two tokens have two names, and a name reveals no token."""
    return f"worker-{sha256(token.encode()).hexdigest()[:16]}"


def acquire_call(keys: SessionKeys, owner: str, token: str, ttl_ms: int, *, reenter: bool) -> ScriptCall:
    args = [keys.session_id, owner, token, ttl_ms, REMAINS_MS, keys.access, "1" if reenter else ""]
    return ScriptCall(scripts.ACQUIRE, keys.own, args)


def acquire_reply(call: ScriptCall, keys: SessionKeys, owner: str, reply: Any) -> Acquired:
    if status(call, reply, keys) == "busy":
        holder = reply[2].decode()
        raise LeaseBusy(keys.session_id, holder, int(reply[3]), reply[4] / 1000, holder == owner)
    _, _, generation, deadline, until, before, holder, former, ended = reply
    displaced = LeaseInfo(holder.decode(), int(former), ended / 1000) if before else None
    return Acquired(int(generation), deadline, until, displaced)


def renew_call(keys: SessionKeys, lease: LeaseClaim, ttl_ms: int) -> ScriptCall:
    args = [keys.session_id, lease.owner, lease.token, ttl_ms, REMAINS_MS, keys.access]
    return ScriptCall(scripts.RENEW, [keys.head], args)


def renew_reply(call: ScriptCall, keys: SessionKeys, lease: LeaseClaim, reply: Any) -> Acquired:
    if status(call, reply, keys) == "lost":
        raise LeaseLost(keys.session_id, lease.owner, reply[2].decode())
    return Acquired(int(reply[2]), reply[3], reply[4])


def release_call(keys: SessionKeys, lease: LeaseClaim, request: str) -> ScriptCall:
    """Release the lease. `request`: letters and digits unique to this release, by which a retry is recognised."""
    return ScriptCall(scripts.RELEASE, [keys.head], [keys.session_id, lease.owner, lease.token, request, keys.access])


def release_reply(call: ScriptCall, keys: SessionKeys, lease: LeaseClaim, reply: Any) -> None:
    if status(call, reply, keys) == "lost":
        raise LeaseLost(keys.session_id, lease.owner, reply[2].decode())


def lease_read(keys: SessionKeys) -> Command:
    return ("HMGET", keys.head, "lease", "owner", "facts")


def lease_reply(keys: SessionKeys, reply: Sequence[bytes | None]) -> LeaseInfo | None:
    """Decode the reply to `lease_read`; None if the session is another's than the owner for whom the caller acts."""
    stored, owner, facts = reply
    return None if is_foreign(keys, owner, facts) else decode_lease(stored, keys.head)


def check_leases(commit: RuntimeCommit) -> None:
    """Check the leases that a commit names.

    Raises:
        InvalidRecord: a lease is invalid, or the commit names both `lease` and `releases`.
        SessionBindingMismatch: a lease belongs to another session.
    """
    for name in ("lease", "releases"):
        lease = getattr(commit, name)
        if lease is not None:
            check_lease(f"RuntimeCommit.{name}", lease, commit.session_id)
    if commit.lease is not None and commit.releases is not None:
        raise InvalidRecord("RuntimeCommit.releases", "expected None, because RuntimeCommit.lease is set; set only one")


def check_lease(field: str, lease: object, session_id: str) -> None:
    """Raise InvalidRecord or SessionBindingMismatch unless `lease` is a valid claim on a lease of this session."""
    require_type(field, lease, LeaseClaim)
    assert isinstance(lease, LeaseClaim)
    if lease.session_id != session_id:
        raise SessionBindingMismatch(session_id, lease.session_id)
    require_id(f"{field}.owner", lease.owner)
    checked_token(f"{field}.token", lease.token)
    if type(lease.generation) is not int or not 0 < lease.generation < 2**63:
        raise InvalidRecord(f"{field}.generation", f"expected 1..2**63-1, got {lease.generation!r}")


def fence_of(lease: LeaseClaim | None) -> str:
    """Encode a lease as an argument of a commit: generation, token and owner; '' for none."""
    return "" if lease is None else f"{lease.generation} {lease.token} {lease.owner}"
