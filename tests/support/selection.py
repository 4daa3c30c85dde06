"""Which tests a run selects: by server, by folder, by mark.

`make test` runs `--quick`, `make test-rest` runs `--rest`. Every test belongs to exactly one of the two.
"""

from __future__ import annotations

from pathlib import PurePath

import pytest

from tests.support.groups import Cluster, SentinelGroup, preferred
from tests.support.paths import DATA
from tests.support.servers import FAKE, Kind, every

QUICK_SERVERS = frozenset({FAKE, "valkey-9"})
SLOW_FOLDERS = frozenset({"cluster", "faults", "machines"})
GROUP_FIXTURES = {"cluster": Cluster, "sentinels": SentinelGroup}


def add_options(parser: pytest.Parser) -> None:
    """Add the options of this module to the command line of pytest."""
    group = parser.getgroup("lash_redis", "selection of tests")
    group.addoption(
        "--servers",
        metavar="NAME,...",
        help="run tests of these servers only, such as fakeredis,valkey-9; tests that run once always run",
    )
    group.addoption(
        "--quick",
        action="store_true",
        help=f"run what `make test` runs: no test marked slow, none in {', '.join(sorted(SLOW_FOLDERS))}, "
        f"and of the servers only {', '.join(sorted(QUICK_SERVERS))}",
    )
    group.addoption("--rest", action="store_true", help="run exactly the tests that --quick leaves out")


def check_options(config: pytest.Config) -> None:
    """Refuse options that select nothing.

    Raises:
        pytest.UsageError: a server is unknown, or both --quick and --rest are given.
    """
    known = {kind.name for kind in every()}
    unknown = set(_named_servers(config) or ()) - known
    if unknown:
        raise pytest.UsageError(
            f"--servers: unknown {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}"
        )
    if config.getoption("--quick") and config.getoption("--rest"):
        raise pytest.UsageError("--quick and --rest exclude each other; leave both out to run every test")


def is_selected_server(config: pytest.Config, name: str) -> bool:
    """Whether the run may have tests of this server."""
    if config.getoption("--quick") and name not in QUICK_SERVERS:
        return False
    named = _named_servers(config)
    return named is None or name in named


def is_selected(item: pytest.Item) -> bool:
    """Whether the run has this test."""
    config = item.config
    if config.getoption("--quick") and not is_quick(item):
        return False
    if config.getoption("--rest") and is_quick(item):
        return False
    if item.get_closest_marker("samples") and not DATA.is_dir():
        return False
    return all(is_selected_server(config, name) for name in servers_of(item))


def is_quick(item: pytest.Item) -> bool:
    """Whether `make test` runs this test."""
    folder = PurePath(item.nodeid).parts[1]
    return folder not in SLOW_FOLDERS and not item.get_closest_marker("slow") and servers_of(item) <= QUICK_SERVERS


def servers_of(item: pytest.Item) -> frozenset[str]:
    """The names of the servers that a test is parametrized for or borrows; empty for a test that runs once.

    A test that asks for the fixture `cluster` or `sentinels` at run time declares it by `@pytest.mark.group(name)`.
    """
    parameters = getattr(item, "callspec", None)
    kinds = {value for value in (parameters.params.values() if parameters else ()) if isinstance(value, Kind)}
    if not kinds:
        fixtures = {*getattr(item, "fixturenames", ()), *(mark.args[0] for mark in item.iter_markers("group"))}
        kinds = {preferred(group) for name, group in GROUP_FIXTURES.items() if name in fixtures}
    return frozenset(kind.name for kind in kinds)


def _named_servers(config: pytest.Config) -> list[str] | None:
    named: str | None = config.getoption("--servers")
    return None if named is None else [name.strip() for name in named.split(",")]
