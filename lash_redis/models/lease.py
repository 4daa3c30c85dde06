"""The exclusive right to work on a session: what a lease stores. `lash_redis.session.lease` renews and releases it."""

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
    """Whose a lease is or was. `deadline`: seconds since 1970 by the server's clock, perhaps past."""

    owner: str
    generation: U64
    deadline: Seconds


@dataclass(slots=True, eq=False)
class LeaseClaim(Record):
    """What a commit is checked against. `deadline` moves on when the lease is renewed; nothing else ever changes."""

    session_id: Id
    owner: Id
    token: Id = field(repr=False)
    """The secret of its holder: whoever has it and the owner's name can renew and release."""
    generation: U64
    """One higher at each change of hands: what a worker writes elsewhere can be ordered by it."""
    deadline: Seconds
    """Seconds since 1970 by the server's clock."""
