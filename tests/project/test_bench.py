"""What the benchmarks count, compare and draw is what they say."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import hiredis
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from bench import capacity, check, cluster, floor, grid, load, recorded, report, scale, stage, steps, workload
from bench.measure import Contender, Times, spread, together, traffic, wire_to
from bench.network import further_off
from lash_redis import SessionCache
from lash_redis.protocol.keys import Layout
from tests.support.paths import ROOT


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    times = Times({"ours": [10.0, 30.0, 200.0], "bare": [5.0, 10.0, 100.0]})
    assert times.ratio("ours", "bare") == 2.0


def test_a_spread_is_the_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == (2.0, 3.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


async def test_contenders_together_each_run_once_with_what_they_prepared() -> None:
    seen: list[str] = []

    def saying(word: str) -> Contender:
        async def run(made: str) -> None:
            seen.append(made)

        return Contender(run, lambda: word)

    both = together([saying("a"), saying("b")])
    await both.run(*await both.made())
    assert sorted(seen) == ["a", "b"]


def test_a_setting_of_the_grid_changes_one_thing() -> None:
    usual = stage.Setting()
    for point in grid.points(quick=False):
        changed = [
            each.name for each in fields(usual) if getattr(point.setting, each.name) != getattr(usual, each.name)
        ]
        assert len(changed) == (0 if point.dimension == "as in the budgets" else 1), point


def test_the_spans_of_a_path_leave_out_the_branches_beside_it() -> None:
    assert stage.spans_of(workload.forked(10, 4, 2)) == [(0, 1), (8, 9)]
    assert stage.spans_of(workload.line(0, 3, None)) == [(0, 2)]


def test_no_two_sessions_or_turns_have_an_equal_component() -> None:
    states = {workload.execution_state(owner, turn) for owner in ("a", "b") for turn in (1, 2)}
    assert len(states) == 4
    assert {len(state) for state in states} == {8192}
    assert workload.plugin_snapshot("a", 1) != workload.plugin_snapshot("b", 1)


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    assert report.markdown([["what", "µs"], ["a commit", "7"]]) == (
        "| what     | µs |\n|----------|----|\n| a commit | 7  |"
    )


@pytest.mark.parametrize(
    ("current", "verdict"),
    [((0.7, 0.8, 0.9), "faster"), ((1.1, 1.2, 1.3), "slower"), ((0.9, 0.97, 1.2), "")],
)
def test_only_what_lies_outside_the_noise_is_called_faster_or_slower(
    current: tuple[float, float, float], verdict: str
) -> None:
    sides = {"base": (1.0, 1.0, 1.0), "current": current, "base again": (0.95, 1.0, 1.05)}
    assert check.Comparison("commit", 500.0, 100.0, sides, sides).cells()[4] == verdict


async def test_every_operation_runs_for_every_contender(url: str) -> None:
    settled = stage.Stage(stage.Setting(nodes=10, sessions=100, tasks=2))
    async with stage.way_to(url, 2) as way:
        await settled.set_up(way, stage.OPERATIONS)
        for operation in stage.OPERATIONS:
            contenders = settled.contenders(operation, way)
            assert list(contenders) == ["ours", "bare", "floor"]
            for contender in contenders.values():
                await contender.run(*await contender.made())


async def test_the_floor_gets_every_reply_and_raises_an_error_among_them(url: str) -> None:
    socket = await floor.Socket.to(url)
    try:
        assert await socket.ask(floor.packed([("SET", "key", "value"), ("GET", "key")]), 2) == [b"OK", b"value"]
        with pytest.raises(hiredis.ReplyError):
            await socket.ask(floor.packed([("LRANGE", "key", 0, -1)]), 1)
    finally:
        socket.close()


async def test_traffic_counts_what_one_operation_costs(url: str) -> None:
    async with (
        wire_to(url) as (relay, wire),
        redis.asyncio.from_url(relay) as client,
        redis.asyncio.from_url(url) as own,
    ):
        cost = await traffic(own, wire, Contender(lambda: client.set("key", "x" * 1000)), repeats=5)
    assert (cost.round_trips, cost.commands) == (1, 1)
    assert 1000 < cost.up < 1100
    assert cost.down == len(b"+OK\r\n")


async def test_a_lost_answer_ends_the_connection_after_the_command_was_done(url: str) -> None:
    async with wire_to(url) as (relay, wire), redis.asyncio.from_url(relay, retry=Retry(NoBackoff(), 0)) as client:
        await client.set("key", 1)
        wire.lose = 1
        with pytest.raises(RedisConnectionError):
            await client.incr("key")
        assert wire.lose == 0
        assert await client.get("key") == b"2"


class Echo(socketserver.BaseRequestHandler):
    """Says all it hears, and "end" when it has heard all."""

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
    """To a server that echoes, which has answered once."""
    parts = urlsplit(url)
    link = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=60)
    link.sendall(b"begin")
    assert link.recv(5, socket.MSG_WAITALL) == b"begin"
    return link


def test_all_that_goes_far_arrives_in_order_both_ways_and_ends(echo: str) -> None:
    said = b"".join(b"%07d\n" % number for number in range(1 << 20))
    with further_off(echo, 0.5) as relay, connected(relay) as link:
        link.sendall(said)
        link.shutdown(socket.SHUT_WR)
        heard = bytearray()
        while data := link.recv(1 << 16):
            heard += data
    assert (len(heard), heard[-3:]) == (len(said) + 3, b"end")
    assert heard.startswith(said)


def test_what_goes_far_at_the_same_time_stays_apart(echo: str) -> None:
    with further_off(echo, 0.5) as relay, ExitStack() as links:
        every = [links.enter_context(connected(relay)) for _ in range(20)]
        for turn in range(10):
            for number, link in enumerate(every):
                link.sendall(b"%03d %03d" % (number, turn))
            for number, link in enumerate(every):
                assert link.recv(7, socket.MSG_WAITALL) == b"%03d %03d" % (number, turn)


def test_a_relay_ends_with_its_context(echo: str) -> None:
    with further_off(echo, 0.5) as relay:
        link = connected(relay)
    with link:
        assert link.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connected(relay)


OWNING = """
import sys
from bench.network import further_off

with further_off(sys.argv[1], 0.5) as relay:
    print(relay, flush=True)
    sys.stdin.read()
"""


def test_a_relay_ends_with_its_owner_though_that_is_killed(echo: str) -> None:
    command, where, pipe = [sys.executable, "-c", OWNING, echo], ROOT, subprocess.PIPE
    with subprocess.Popen(command, cwd=where, stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout is not None
        with connected(owner.stdout.readline().strip()) as link:
            owner.kill()
            assert link.recv(1) == b""


async def test_what_was_recorded_is_committed_again_in_every_round(url: str) -> None:
    recording = await recorded.recorded(url, sessions=3, turns=2)
    (line,) = recorded.played([recorded.Target(url, recording)], "commit", connections=2, rounds=2)
    assert (line.operation, line.count, line.askers) == ("commit", 2, "connections")
    assert 14_000 < line.up < 16_000
    assert line.held == pytest.approx(1e6 / line.server_us)
    async with redis.asyncio.from_url(url) as client:
        cache = SessionCache(client, "recorded")
        heads = [await cache.session(f"{number}").load_head() for number in range(3)]
    assert [head and head.head_revision for head in heads] == [3, 3, 3]


@pytest.mark.parametrize(("operation", "trips"), [("resume", 1), ("resume by another", 1), ("refresh", 1)])
async def test_a_recorded_read_brings_what_it_brought_the_first_time(url: str, operation: str, trips: int) -> None:
    recording = await recorded.recorded(url, sessions=2, turns=1)
    target = recorded.Target(url, recording)
    assert [len(each) for each in recording.orders(operation, 1)[0]] == [trips, trips]
    with recorded.loaded(target, operation, 1) as load_:
        recorded.play(load_.connections, load_.orders)
        assert len(load_.connections[0].taken) == 2
        answers = [trip.answer for each in load_.orders[0] for trip in each]
        assert load_.connections[0].down == sum(answers)


async def test_a_recorded_read_that_finds_something_else_is_no_measurement(url: str) -> None:
    recording = await recorded.recorded(url, sessions=1, turns=1)
    with recorded.loaded(recorded.Target(url, recording), "resume", 1) as load_:
        recorded.play(load_.connections, [recording.sessions[0]["commit"]])
        with pytest.raises(AssertionError, match="another answer"):
            recorded.play(load_.connections, load_.orders)


async def test_a_server_is_full_where_its_core_is() -> None:
    def line(count: int, busy: float) -> load.Line:
        return load.Line("commit", "connections", count, 1000.0, 1.0, 2.0, busy, 100.0, 90.0)

    lines = [line(1, 0.5), line(2, 0.93), line(4, 1.0)]
    assert recorded.saturated(lines) == {"commit": lines[1]}
    assert recorded.saturated(lines[:1]) == {"commit": None}


@pytest.mark.slow
async def test_each_primary_of_a_cluster_hears_its_own_sessions() -> None:
    with cluster.three() as urls:
        recordings = await cluster.recordings_of(urls, sessions=9, turns=1)
        assert sum(len(recording.sessions) for recording in recordings) == 9
        for url, recording in zip(urls, recordings, strict=True):
            (line,) = recorded.played([recorded.Target(url, recording)], "commit", 2, 1)
            assert line.a_second > 0


def test_a_crowd_falls_on_nodes_as_their_shards_do() -> None:
    even = cluster.by_node(Layout("crowd", 64), 3, 10_000, 0.0)
    assert sum(even) == pytest.approx(1.0)
    assert max(even) < 0.35
    assert cluster.by_node(Layout("crowd", 1), 3, 100, 0.8) in ([1, 0, 0], [0, 1, 0], [0, 0, 1])


@pytest.mark.slow
def test_every_session_of_a_crowd_begins_before_turns_are_taken(url: str) -> None:
    windows = scale.crowd(url, scale.Plan(sessions=40, crowd_seconds=1.0, ttl=60.0))
    assert [window.begun for window in windows] == [40] + [0] * scale.WINDOWS
    assert windows[-1].keys >= 40
    assert windows[-1].until_seconds == 1.0


@pytest.mark.parametrize(("a_second", "said"), [(10.0, "in 4 s, until second 0.\n"), (1.0, "longer than the ttl")])
def test_a_crowd_that_began_too_slowly_says_so(a_second: float, said: str) -> None:
    began = scale.Window(0.0, a_second, (0.0, 0.0), (1.0, 2.0), 40, 0, 200, 1.0, 0.5)
    assert said in scale.crowd_table([began], ttl=30.0)


def figures(**changed: Any) -> capacity.Figures:
    usual: dict[str, Any] = {
        "server_us": {"commit": 80.0, "resume by another": 20.0, "refresh": 10.0},
        "safe_us": 10.0,
        "worker_us": {"commit": 600.0, "resume by another": 400.0, "refresh": 200.0},
        "up": {"commit": 15_000.0, "resume by another": 500.0, "refresh": 700.0},
        "down": {"commit": 50.0, "resume by another": 75_000.0, "refresh": 50.0},
        "session_bytes": {20: 30_000.0, 100: 80_000.0},
        "tools": 20_000.0,
        "replaced": 10_000.0,
        "logged": 16_000.0,
    }
    return capacity.Figures(**usual | changed)


def test_an_estimate_is_the_figures_times_what_is_asked() -> None:
    asked = capacity.Asked(sessions=1_000_000, turns=10_000.0, grace=60.0, shards=1000)
    estimate = capacity.Estimate(asked, figures(), "resume by another")
    assert estimate.cores == pytest.approx(1.1)
    assert estimate.memory == {"sessions": 80e9, "replaced": 6e9, "tools": 20e6}
    assert estimate.by_memory == 2  # 86 GB on servers of 64
    assert estimate.by_cores == 3  # 1.1 cores, half full, and the busiest above the mean
    assert estimate.primaries == 3
    assert estimate.wait_us == 1000.0
    assert {what: told for what, told, _ in estimate.needs()}["calls of workers under way at once"] == "10"
    assert estimate.bits(estimate.figures.down) == pytest.approx(estimate.top * 8 * 75_050)


@pytest.mark.parametrize(("messages", "size"), [(20, 30_000), (60, 55_000), (100, 80_000), (200, 142_500)])
def test_a_session_between_two_that_were_weighed_lies_on_their_line(messages: int, size: float) -> None:
    estimate = capacity.Estimate(capacity.Asked(messages=messages), figures(), "refresh")
    assert estimate.session_bytes == pytest.approx(size)


def test_what_ends_first_stands_first() -> None:
    asked = capacity.Asked(sessions=1_000_000, turns=10_000.0)
    table = capacity.text(asked, figures(worker_us=dict.fromkeys(("commit", "resume by another", "refresh"), 1e6)))
    ends = table.partition("What ends first")[2]
    assert ends.index("the busiest session") < ends.index("memory") < ends.index("network")


def test_figures_are_read_from_what_the_benchmark_writes() -> None:
    def line(operation: str, askers: str, server_us: float, a_second: float = 1.0) -> dict[str, Any]:
        return asdict(load.Line(operation, askers, 8, a_second, 1.0, 2.0, 1.0, server_us, 1.0, 10.0, 20.0))

    operations = ("commit", "resume by another", "refresh")
    sent = [line(operation, "connections", 50.0) for operation in operations]
    sent += [line("refresh", "connections", 40.0, 2.0), line("commit", "workers", 99.0, 9.0)]
    asked = [line(each, f"to node {n}", 60.0 + n) for each in operations[:2] for n in (1, 2, 3)]
    asked += [line("commit", "to one server", 55.0), line("commit", "to one with log and replica", 75.0)]
    waits = {name: {"cluster_us": 500.0} for name in cluster.WAITS}
    stored = {"sessions": {"20": 1.0, "100": 2.0}, "tools": 3.0, "replaced": 4.0, "logged": 5.0}
    run = {"scale": sent, "cluster": {"lines": asked, "waits": waits}, "stored": stored}
    rows = [{"what": "all 100,000 in one pass", "value": 70.0}, {"what": "audit of 100,000 sessions", "value": 600.0}]
    found = capacity.Figures.of(run, rows)
    assert found.server_us == {"commit": 63.0, "resume by another": 63.0, "refresh": 40.0}
    assert found.safe_us == 20.0
    assert (found.line_us, found.audit_us, found.session_bytes) == (70.0, 600.0, {20: 1.0, 100: 2.0})


DRAWING = """
import sys
from pathlib import Path
from bench.plots import Figure, figures_of

figure = Figure("picture", "A commit", "messages", ["10", "100"])
figure.add("ours", [500.0, 520.0])
figure.add("other", [1000.0, None])
figure.draw(Path(sys.argv[1]))
line = {"operation": "commit", "askers": "workers", "count": 1, "a_second": 900.0, "busy": 0.125}
sent = {**line, "askers": "connections", "a_second": 9000.0, "busy": 1.02}
window = {"until_seconds": 0.0, "commit_us": (500.0, 900.0), "resume_us": (300.0, 800.0), "used_mb": 70.0}
run = {"scale": [line, sent], "crowd": [window, {**window, "until_seconds": 10.0}, {**window, "until_seconds": 20.0}]}
for figure in figures_of(run):
    figure.draw(Path(sys.argv[1]))
"""
"""In a process of its own: pygal changes how everything after it is imported, which warns."""


def test_a_picture_follows_the_readers_mode_and_is_the_same_every_day(tmp_path: Path) -> None:
    drawn = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", DRAWING, tmp_path], cwd=ROOT, check=True)
        drawn.append((tmp_path / "picture.svg").read_text())
    assert drawn[0] == drawn[1]
    assert "prefers-color-scheme" in drawn[0].replace(": ", ":")
    assert "<script" not in drawn[0]
    names = {"picture", "scale-a-second", "scale-busy", "crowd-times", "crowd-memory"}
    assert {path.stem for path in tmp_path.iterdir()} == names
    assert "commits, recorded" in (tmp_path / "scale-a-second.svg").read_text()
    assert "70 MB" in (tmp_path / "crowd-memory.svg").read_text()


@pytest.mark.slow
async def test_the_steps_of_a_commit_and_a_read_are_those_of_the_store(url: str) -> None:
    _, found = await steps.measured(url, 3)
    for what, taken in found.items():
        assert all(took >= 0 for took in taken.values()), what
    assert found["commit"]["server: the commands in it"] < found["commit"]["server: the script"]
    assert len(found["read"]) == 9
