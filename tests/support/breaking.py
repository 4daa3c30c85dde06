"""Ways to break a store on purpose. `@broken_by(...)` on a test names broken stores on which it must fail.

`tests/laws/test_broken_twins.py` runs each marked test on every one of its broken stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha1
from importlib import import_module
from typing import Any, Protocol, TypeVar

import pytest

from lash_redis.protocol import scripts

Law = TypeVar("Law", bound=Callable[..., Any])


class Breakage(Protocol):
    @property
    def name(self) -> str: ...

    def apply(self, patch: pytest.MonkeyPatch) -> None: ...


@dataclass(frozen=True)
class Lua:
    """A script in which `old` is replaced by `new`. It is an error if the script does not contain `old`."""

    script: str
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.script}: {self.new.strip() or 'without ' + self.old.strip()}"

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        constant = self.script.upper()
        script: scripts.Script = getattr(scripts, constant)
        if self.old not in script.text:
            raise LookupError(f"{self.script}.lua no longer contains {self.old!r}")
        text = script.text.replace(self.old, self.new)
        broken = replace(script, text=text, sha=sha1(text.encode(), usedforsecurity=False).hexdigest())
        patch.setattr(scripts, constant, broken)


@dataclass(frozen=True)
class Python:
    """A function replaced by `make(function)`. `target` is `module:name` or `module:Class.name`."""

    target: str
    make: Callable[[Any], Any]
    says: str

    @property
    def name(self) -> str:
        return f"{self.target}: {self.says}"

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        module, _, path = self.target.partition(":")
        owner: Any = import_module(f"lash_redis.{module}")
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        patch.setattr(owner, name, self.make(getattr(owner, name)))


def broken_by(*breakages: Breakage) -> Callable[[Law], Law]:
    """Declare that the test must fail on a store broken in any one of these ways."""

    def mark(law: Law) -> Law:
        law.breakages = breakages  # type: ignore[attr-defined]
        return law

    return mark


def one_by_one(read: Callable[..., Any]) -> Callable[..., Any]:
    """Replace `Namespace.read` by one request per command, so that other writes may happen in between."""

    async def scattered(self: Any, commands: Any, *, atomic: bool, **more: Any) -> list[Any]:
        replies: list[Any] = []
        for command in commands:
            replies += await read(self, [command], atomic=False, **more)
            await asyncio.sleep(0)
        return replies

    return scattered
