"""Run each marked test on a store that is broken on purpose. The test must fail there."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lash_redis import BackendError, StoreError
from tests.laws import test_watch
from tests.laws.test_recount import after_listing, before_writing  # noqa: F401 - fixtures of marked tests
from tests.support.breaking import Breakage, Lua
from tests.support.servers import Kind, RunningServers, Server, any_real, require, table

pytestmark = pytest.mark.slow

FAKE = next(kind for kind in table() if not kind.real)


@pytest.fixture
async def server(request: pytest.FixtureRequest, _running: RunningServers) -> AsyncIterator[Server]:
    """One server is enough, because each breakage is in this package."""
    async for each in _one(request, _running, FAKE):
        yield each


@pytest.fixture
async def real_server(request: pytest.FixtureRequest, _running: RunningServers) -> AsyncIterator[Server]:
    async for each in _one(request, _running, any_real()):
        yield each


async def _one(request: pytest.FixtureRequest, running: RunningServers, kind: Kind) -> AsyncIterator[Server]:
    request.node.user_properties.append(("server", kind.name))
    require(kind)
    served = running.emptied(kind)
    yield served
    await served.close_clients()


WITHOUT_TWINS = {"test_bad_input", "test_broken_twins", "test_conversations", "test_corruption", "test_transfer"}
MODULES = sorted({path.stem for path in Path(__file__).parent.glob("test_*.py")} - WITHOUT_TWINS)


def marked_tests() -> Iterator[tuple[str, Callable[..., Awaitable[None]], Breakage]]:
    for module in MODULES:
        for name, check in vars(import_module(f"tests.laws.{module}")).items():
            for breakage in getattr(check, "breakages", ()):
                yield name, check, breakage


PATIENCE = 10.0
"""Seconds that a test waits for what a broken store never does."""
FAILURES = (AssertionError, StoreError, pytest.fail.Exception)


LEAKING = {"tests.laws.test_cleanup"}
"""The modules whose broken stores leave connections open."""


def broken_twin(check: Callable[..., Awaitable[None]], breakage: Breakage) -> Callable[..., Awaitable[None]]:
    @wraps(check)
    async def twin(**fixtures: Any) -> None:
        failure: BaseException | None = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(test_watch, "PATIENCE", PATIENCE)
            breakage.apply(patch)
            try:
                await check(**fixtures)
            except (*FAILURES, ExceptionGroup) as raised:
                failure = raised
        assert failure is not None, f"the test passes on a broken store: {breakage.name}"
        assert not isinstance(failure, BackendError), f"{breakage.name}: does not run at all: {failure}"
        if isinstance(failure, ExceptionGroup):
            assert failure.split(FAILURES)[1] is None

    return pytest.mark.leaks(twin) if check.__module__ in LEAKING else twin


numbers: Counter[str] = Counter()
for name, check, breakage in marked_tests():
    numbers[name] += 1
    globals()[f"{name}__broken_{numbers[name]}"] = broken_twin(check, breakage)
del name, check, breakage


def test_every_file_of_invariants_has_broken_twins():
    with_twins = {check.__module__.removeprefix("tests.laws.") for _, check, _ in marked_tests()}
    assert with_twins == set(MODULES)
    assert len(list(marked_tests())) >= 25


def test_a_breakage_whose_text_is_not_in_the_script_is_an_error():
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LookupError, match="no longer contains"):
        Lua("commit", "this text is in no script", "").apply(patch)
