"""The records of a lease, the exclusive right to work on a session. `session.lease` renews and releases it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Annotated, Any

from lash_redis.models.json_values import refuse
from lash_redis.models.wire import U64, Id, Record, Shape


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        refuse(value, "a finite number")
    return float(value)


Seconds = Annotated[float, Shape(lambda value, form: _seconds(value), _seconds)]


@dataclass(frozen=True, slots=True)
class LeaseInfo(Record):
    """The holder of a lease, now or in the past."""

    owner: str
    """The worker that holds the lease or held it last."""
    generation: U64
    """The fencing token of that holder, one higher for each new holder."""
    deadline: Seconds
    """The end of the lease in seconds since 1970 by the server's clock. It may be in the past."""


@dataclass(slots=True, eq=False)
class LeaseClaim(Record):
    """A lease that the server verifies before it makes a commit. Only `deadline` changes, when the lease is renewed."""

    session_id: Id
    """The session that the lease is for."""
    owner: Id
    """The worker that holds the lease."""
    token: Id = field(repr=False)
    """The secret of the holder. With it and the owner's name any process can renew and release the lease."""
    generation: U64
    """The fencing token, one higher for each new holder. Other systems can order writes by it."""
    deadline: Seconds
    """The end of the lease in seconds since 1970 by the server's clock."""
