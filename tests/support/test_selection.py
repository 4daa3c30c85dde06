"""A test belongs to the servers that it uses, and `make test` runs it only if it is quick."""

from __future__ import annotations

import pytest

from tests.support.groups import Cluster, preferred
from tests.support.paths import ROOT
from tests.support.selection import ASYNC_FILES, ASYNC_TESTS, QUICK_SERVERS, is_quick, servers_of
from tests.support.servers import Server


def test_a_test_with_a_server_belongs_to_that_server(server: Server, request: pytest.FixtureRequest) -> None:
    assert servers_of(request.node) == {server.kind.name}
    assert is_quick(request.node) == (server.kind.name in QUICK_SERVERS)


def test_a_test_with_a_group_belongs_to_that_group(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    assert servers_of(request.node) == {preferred(Cluster).name}
    assert not is_quick(request.node)


@pytest.mark.group("sentinels")
def test_a_test_that_declares_a_group_belongs_to_that_group(request: pytest.FixtureRequest) -> None:
    (name,) = servers_of(request.node)
    assert name.startswith("sentinel-")
    assert not is_quick(request.node)


@pytest.mark.slow
def test_a_slow_test_is_not_quick(request: pytest.FixtureRequest) -> None:
    assert servers_of(request.node) == frozenset()
    assert not is_quick(request.node)


def test_any_other_test_is_quick(request: pytest.FixtureRequest) -> None:
    assert is_quick(request.node)


def test_the_tests_that_the_blocking_client_leaves_out_exist() -> None:
    texts = {path.name: path.read_text("utf-8") for path in (ROOT / "tests" / "laws").glob("test_*.py")}
    assert ASYNC_FILES.keys() <= texts.keys()
    assert {name for name in ASYNC_TESTS if not any(f"def {name}(" in text for text in texts.values())} == set()
