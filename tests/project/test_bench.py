"""The benchmarks count, compare and draw correctly."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from bench import check, report, scale, workers, workload
from bench.langgraph_savers import OURS, peers
from bench.langgraph_writers import Outcome, two_writers
from bench.measure import Contender, Times, in_turn, percentiles, spread, traffic, wire_to
from bench.network import relay_with_latency
from lash_redis import SessionCache
from tests.support.paths import ROOT


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    times = Times({"ours": [10.0, 30.0, 200.0], "bare": [5.0, 10.0, 100.0]})
    assert times.ratio("ours", "bare") == 2.0


def test_a_spread_is_the_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == (2.0, 3.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_percentiles_of_a_single_value_are_that_value() -> None:
    assert percentiles([7.0]) == (7.0, 7.0)
    assert percentiles([float(value) for value in range(101)]) == (50.0, 99.0)


async def test_contenders_in_turn_run_with_their_own_arguments() -> None:
    seen: list[str] = []

    def named(word: str) -> Contender:
        async def run(made: str) -> None:
            seen.append(made)

        return Contender(run, lambda: word)

    both = in_turn([named("a"), named("b")])
    for _ in range(3):
        await both.run(*await both.prepare())
    assert seen == ["a", "b", "a"]


def test_no_two_sessions_or_turns_have_an_equal_component() -> None:
    states = {workload.execution_state(owner, turn) for owner in ("a", "b") for turn in (1, 2)}
    assert len(states) == 4
    assert {len(state) for state in states} == {8192}
    assert workload.plugin_snapshot("a", 1) != workload.plugin_snapshot("b", 1)


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    assert report.markdown([["what", "µs"], ["a commit", "7"]]) == (
        "| what     | µs |\n|----------|----|\n| a commit | 7  |"
    )


def test_a_budget_is_an_upper_or_a_lower_limit() -> None:
    largest, least = (report.Row("", "", "", 1.1, 1.0, is_least=is_least) for is_least in (False, True))
    assert (largest.met, least.met) == (False, True)
    assert (largest.cells()[4], least.cells()[4]) == ("≤ 1x", "≥ 1x")


@pytest.mark.parametrize("side", [workers.OURS, workers.BARE])
async def test_all_tasks_of_all_processes_make_their_commits(url: str, side: str) -> None:
    processes = [workers.Worker(side, url, f"{side}-{number}", "2") for number in range(2)]
    try:
        assert [process.answer() for process in processes] == ["ready", "ready"]
        block = workers.run_block(processes, 2, 3)
    finally:
        for process in processes:
            process.close()
    assert len(block.calls) == 2 * 2 * 3
    assert block.a_second > 0


@pytest.mark.parametrize(
    ("current", "verdict"),
    [((0.7, 0.8, 0.9), "faster"), ((1.1, 1.2, 1.3), "slower"), ((0.9, 0.97, 1.2), "")],
)
def test_only_differences_outside_of_the_noise_are_reported(current: tuple[float, float, float], verdict: str) -> None:
    sides = {"base": (1.0, 1.0, 1.0), "current": current, "base again": (0.95, 1.0, 1.05)}
    assert check.Comparison("commit", 500.0, sides).cells()[4] == verdict


async def test_traffic_counts_the_round_trips_and_bytes_of_one_operation(url: str) -> None:
    async with (
        wire_to(url) as (relay, wire),
        redis.asyncio.from_url(relay) as client,
        redis.asyncio.from_url(url) as own,
    ):
        cost = await traffic(own, wire, Contender(lambda: client.set("key", "x" * 1000)), repeats=5)
    assert (cost.round_trips, cost.commands) == (1, 1)
    assert 1000 < cost.up < 1100
    assert cost.down == len(b"+OK\r\n")


async def test_a_lost_reply_closes_the_connection_after_the_command_is_executed(url: str) -> None:
    async with wire_to(url) as (relay, wire), redis.asyncio.from_url(relay, retry=Retry(NoBackoff(), 0)) as client:
        await client.set("key", 1)
        wire.lose = 1
        with pytest.raises(RedisConnectionError):
            await client.incr("key")
        assert wire.lose == 0
        assert await client.get("key") == b"2"


class Echo(socketserver.BaseRequestHandler):
    """Returns all received bytes, and then `end` at the end of the stream."""

    def handle(self) -> None:
        with suppress(OSError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)
            self.request.sendall(b"end")


@pytest.fixture
def echo() -> Iterator[str]:
    """The URL of a server that echoes."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def connected(url: str) -> socket.socket:
    """A connection to an echo server that has replied once."""
    parts = urlsplit(url)
    link = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=60)
    link.sendall(b"begin")
    assert link.recv(5, socket.MSG_WAITALL) == b"begin"
    return link


def test_a_relay_with_latency_delivers_all_bytes_in_order_both_ways(echo: str) -> None:
    sent = b"".join(b"%07d\n" % number for number in range(1 << 20))
    with relay_with_latency(echo, 0.5) as relay, connected(relay) as link:
        link.sendall(sent)
        link.shutdown(socket.SHUT_WR)
        received = bytearray()
        while data := link.recv(1 << 16):
            received += data
    assert (len(received), received[-3:]) == (len(sent) + 3, b"end")
    assert received.startswith(sent)


def test_concurrent_connections_of_a_relay_stay_separate(echo: str) -> None:
    with relay_with_latency(echo, 0.5) as relay, ExitStack() as links:
        every = [links.enter_context(connected(relay)) for _ in range(20)]
        for turn in range(10):
            for number, link in enumerate(every):
                link.sendall(b"%03d %03d" % (number, turn))
            for number, link in enumerate(every):
                assert link.recv(7, socket.MSG_WAITALL) == b"%03d %03d" % (number, turn)


def test_a_relay_stops_with_its_context(echo: str) -> None:
    with relay_with_latency(echo, 0.5) as relay:
        link = connected(relay)
    with link:
        assert link.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connected(relay)


OWNING = """
import sys
from bench.network import relay_with_latency

with relay_with_latency(sys.argv[1], 0.5) as relay:
    print(relay, flush=True)
    sys.stdin.read()
"""


def test_a_relay_stops_if_its_owner_is_killed(echo: str) -> None:
    command, where, pipe = [sys.executable, "-c", OWNING, echo], ROOT, subprocess.PIPE
    with subprocess.Popen(command, cwd=where, stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout is not None
        with connected(owner.stdout.readline().strip()) as link:
            owner.kill()
            assert link.recv(1) == b""


async def test_recorded_commits_are_applied_again_in_each_round(url: str) -> None:
    recording = await scale.record(url, sessions=3, turns=2)
    line = scale.measure(url, recording, "commit", 2, 2)
    assert (line.operation, line.connections) == ("commit", 2)
    assert line.a_second > 0
    async with redis.asyncio.from_url(url) as client:
        cache = SessionCache(client, "recorded")
        heads = [await cache.session(f"{number}").load_head() for number in range(3)]
    assert [head and head.head_revision for head in heads] == [3, 3, 3]


@pytest.mark.parametrize("operation", ["resume", "cold resume", "refresh"])
async def test_a_recorded_read_returns_the_same_bytes(url: str, operation: str) -> None:
    recording = await scale.record(url, sessions=2, turns=1)
    assert [len(session[operation]) for session in recording.sessions] == [1, 1]
    scale.measure(url, recording, operation, 1, 1)
    assert all(call.size > 0 for session in recording.sessions for call in session[operation])


async def test_a_recorded_read_with_another_reply_is_an_error(url: str) -> None:
    recording = await scale.record(url, sessions=1, turns=1)
    scale.begin(url, recording)
    scale.learn(url, recording, "resume")
    with scale.connected(url, 1) as lines:
        scale.replay(lines, [recording.sessions[0]["commit"]])
        with pytest.raises(AssertionError, match="expected a reply of"):
            scale.replay(lines, [recording.sessions[0]["resume"]])


DRAWING = """
import sys
from pathlib import Path
from bench.plots import Figure, by_nodes

figure = Figure("picture", "A commit", "messages", ["10", "100"])
figure.add("one", [500.0, 520.0])
figure.add("other", [1000.0, None])
figure.draw(Path(sys.argv[1]))
numbers = {"ours_p50_us": 500.0, "other_p50_us": 250.0}
for figure in by_nodes([{"what": f"commit at {at} nodes / bare", "numbers": numbers} for at in ("10", "1,000")]):
    figure.draw(Path(sys.argv[1]))
"""
"""The code runs in a separate process, because pygal changes later imports, which causes warnings."""


async def test_lost_and_refused_turns_of_two_writers_are_counted(database: str) -> None:
    async with peers(database, None) as (found, missing):
        outcomes = {peer.name: await two_writers(peer, 2) for peer in found}
    assert missing == ["AsyncRedisSaver: not measured; pass --redis-stack URL"]
    assert outcomes.pop(OURS) == Outcome(acknowledged=2, lost=0, refused=2, kept_after_retry=4)
    others = ("InMemorySaver", "AsyncSqliteSaver", "AsyncPostgresSaver")
    assert outcomes == dict.fromkeys(others, Outcome(acknowledged=4, lost=2, refused=0, kept_after_retry=2))


def test_a_picture_follows_the_color_scheme_and_is_reproducible(tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", DRAWING, tmp_path], cwd=ROOT, check=True)
        drawn.append((tmp_path / "picture.svg").read_text())
    assert drawn[0] == drawn[1]
    assert "prefers-color-scheme" in drawn[0].replace(": ", ":")
    assert "<script" not in drawn[0]
    assert {path.stem for path in tmp_path.iterdir()} == {"picture", "commit-by-nodes"}
    assert "1,000" in (tmp_path / "commit-by-nodes.svg").read_text()
