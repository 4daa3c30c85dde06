"""Which tests a run selects: by server, by folder, by mark.

`make test` runs `--quick`, `make test-rest` runs `--rest`. Every test belongs to exactly one of the two.
No run has the tests of `GROUPED_FOLDER` on `GROUPED_SERVER`.
"""

from __future__ import annotations

from pathlib import PurePath

import pytest

from tests.support.groups import Cluster, SentinelGroup, preferred
from tests.support.paths import DATA
from tests.support.servers import FAKE, Kind, every

QUICK_SERVERS = frozenset({FAKE, "valkey-9"})
SLOW_FOLDERS = frozenset({"cluster", "faults", "machines"})
GROUPED_FOLDER, GROUPED_SERVER = "integrations", "redis-7.0"
"""A folder whose tests do not run on a single server of this version, because they run on its cluster and Sentinel."""
GROUP_FIXTURES = {"cluster": Cluster, "sentinels": SentinelGroup}


CANCELS = "cancels the task of the caller, which a thread is not"
REPLACES = "replaces a method of the object that the caller has, which is not the one that the core calls"
SHARES = "runs a coroutine with the raw client of the test inside of the core, which has a loop of its own"
ORDER = "relies on the order in which tasks of one event loop begin, which threads do not have"
STREAMS = "follows streams by tasks of the event loop of the test; tests/blocking/test_streams.py has the blocking ones"
ASYNC_FILES = {
    "test_broken_twins.py": "each broken store fails its test over the async client",
    "test_cleanup.py": CANCELS,
    "test_large.py": "measures what large work leaves of the event loop of the test, and counts its bytes",
    "test_stream_commits.py": STREAMS,
    "test_streams.py": STREAMS,
}
"""The files of `tests/laws` that `--client=blocking` leaves out, and why."""
ASYNC_TESTS = {
    "test_a_failed_or_cancelled_append_does_not_hold_up_the_next": CANCELS,
    "test_a_log_evicted_between_the_two_round_trips_of_a_path_read_is_reported": SHARES,
    "test_a_refresh_detects_a_failover_between_its_two_round_trips": SHARES,
    "test_a_session_lost_between_read_and_commit_is_created_again": SHARES,
    "test_a_refused_commit_is_not_sent_again": REPLACES,
    "test_a_renewing_block_ends_when_a_cancellation_is_swallowed": CANCELS,
    "test_a_renewing_block_raises_lease_lost_when_its_lease_is_taken": CANCELS,
    "test_a_renewing_block_raises_lease_lost_when_renewals_fail_until_the_deadline": CANCELS,
    "test_an_append_that_never_comes_first_ends_with_the_conflict": REPLACES,
    "test_an_append_waits_in_the_queue_of_its_process_for_a_bounded_time": "takes the turn of an event loop of its own",
    "test_appends_of_one_process_follow_one_another_in_the_order_of_their_calls": ORDER,
    "test_exactly_one_of_many_concurrent_first_claims_succeeds": "compares the names of classes",
}
"""The tests of other files that it leaves out, and why."""


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
    group.addoption(
        "--client",
        choices=["async", "blocking"],
        default="async",
        help="the client that the invariants are tested with; `blocking` runs only tests of invariants that it can run",
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
    if is_blocking(config) and not runs_over_blocking(item):
        return False
    if config.getoption("--quick") and not is_quick(item):
        return False
    if config.getoption("--rest") and is_quick(item):
        return False
    if item.get_closest_marker("samples") and not DATA.is_dir():
        return False
    if PurePath(item.nodeid).parts[1] == GROUPED_FOLDER and GROUPED_SERVER in servers_of(item):
        return False
    return all(is_selected_server(config, name) for name in servers_of(item))


def is_quick(item: pytest.Item) -> bool:
    """Whether `make test` runs this test."""
    folder = PurePath(item.nodeid).parts[1]
    return folder not in SLOW_FOLDERS and not item.get_closest_marker("slow") and servers_of(item) <= QUICK_SERVERS


def is_blocking(config: pytest.Config) -> bool:
    """Whether the run tests the blocking client."""
    return bool(config.getoption("--client") == "blocking")


def runs_over_blocking(item: pytest.Item) -> bool:
    """Whether a test can run over the blocking client: it opens its caches by `open_cache`."""
    _, folder, file, *_ = PurePath(item.nodeid.partition("::")[0]).parts
    if folder != "laws" or "open_cache" not in getattr(item, "fixturenames", ()):
        return False
    name = getattr(item, "originalname", item.name)
    return file not in ASYNC_FILES and name not in ASYNC_TESTS


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
