"""State that belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

State = TypeVar("State")

_STATES: Final = "_lash_redis_states"


def states_of_the_running_loop() -> WeakKeyDictionary[Any, Any]:
    """Return the states that the running event loop has, by the object that they belong to.

    They are an attribute of the loop. In any other place they would keep the loop alive, because they refer to it.
    """
    loop = asyncio.get_running_loop()
    states: WeakKeyDictionary[Any, Any] | None = getattr(loop, _STATES, None)
    if states is None:
        states = WeakKeyDictionary()
        setattr(loop, _STATES, states)
    return states


def state_of(owner: object, make: Callable[[], State]) -> State:
    """Return the state of `owner` in the running event loop. The first call makes it."""
    states = states_of_the_running_loop()
    state: State | None = states.get(owner)
    if state is None:
        state = states[owner] = make()
    return state


def forget_state(owner: object, state: object) -> None:
    """Forget the state of `owner` in the running event loop if it is `state`."""
    states = states_of_the_running_loop()
    if states.get(owner) is state:
        del states[owner]
