"""How long do adding to a session and reading it take with each store of an agent SDK, and what does each store lose?

*Add* saves two messages: `add_items` of the OpenAI Agents SDK, `save` of Pydantic AI. For Google ADK it is one
`append_event`. *Read* returns the whole session of N messages. The stores of an SDK take turns in random order in one
run. Traffic and failures are measured as in `bench.peers`. It needs the packages of `peers-requirements.txt`:

    .venv-peers/bin/python -m bench.agent_sessions [FILE ...] [--sdk NAME] [--seconds S] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import redis.asyncio as redis

from bench import peers, report, stores
from bench.measure import Traffic
from bench.memory import usage
from lash_redis.cli.conversations import SHIPPED
from lash_redis.embedded import EmbeddedServer

try:
    from bench import agent_stores
except ModuleNotFoundError as missing:
    sys.exit(f"bench.agent_sessions: {missing}; run it by .venv-peers/bin/python, which `make bench-peers` installs")

SIZES = (10, 100, 1000)
SECONDS = 5.0
"""Duration of the rounds of one line, all stores together."""
WORKS = {"commit": "add", "resume": "read"}


async def measure(
    url: str, every: Sequence[stores.Store], messages: Sequence[stores.Message], seconds: float
) -> dict[str, Any]:
    """Measure the stores of one SDK."""
    async with redis.from_url(url) as client:
        await client.flushall()
        async with AsyncExitStack() as opened:
            for store in every:
                await opened.enter_async_context(store.opened(url))
            lines = await peers.measure_lines(every, messages, seconds, tuple(WORKS), SIZES)
        await client.flushall()
        seen = {size: await peers.measure_traffic(url, messages, every, size) for size in SIZES}
        stored = {
            store.name: {size: await _stored_bytes(client, url, store, messages, size) for size in SIZES}
            for store in every
        }
        await client.flushall()
    verdicts: dict[str, tuple[str, str]] = {}
    for store in every:
        async with store.opened(url):
            stale = await peers.stale_writer(store, messages)
        lost = await peers.lost_reply(url, store, messages) if store.on_redis else "no server"
        verdicts[store.name] = (stale, lost)
    print(_times(lines), _costs(seen, stored), _failures(verdicts), sep="\n\n", end="\n\n")
    return {
        "lines": [asdict(line) for line in lines],
        "traffic": {
            size: {name: {work: asdict(cost) for work, cost in costs.items()} for name, costs in by_name.items()}
            for size, by_name in seen.items()
        },
        "stored bytes": stored,
        "failures": verdicts,
    }


async def _stored_bytes(
    client: redis.Redis, url: str, store: stores.Store, messages: Sequence[stores.Message], size: int
) -> int | None:
    """Return the bytes of a session alone, in the server or in the SQLite file; None for a store in the process."""
    await client.flushall()
    async with store.opened(url):
        await store.worker("alone").begin(peers.first_messages(messages, size))
        if isinstance(store, agent_stores.OnDisk):
            return store.stored_bytes()
        return await usage(client, "*") if store.on_redis else None


def _times(lines: Sequence[peers.Line]) -> str:
    rows = [["store, p50 ms (/ the first)", *(f"{WORKS[work]} N={size:,}" for work in WORKS for size in SIZES)]]
    cells = {(line.peer, line.work, line.messages): line for line in lines}
    for name in dict.fromkeys(line.peer for line in lines):
        found = [cells[name, work, size] for work in WORKS for size in SIZES]
        rows.append([name, *(f"{line.p50_us / 1000:.2f} ({line.ratios[1]:.2g})" for line in found)])
    return report.markdown(rows)


def _costs(seen: dict[int, dict[str, dict[str, Traffic]]], stored: dict[str, dict[int, int | None]]) -> str:
    columns = [f"{what}, N={size:,}" for what in ("add: trips, KiB up", "read: trips, KiB down") for size in SIZES]
    rows = [["store", *columns, *(f"KiB stored, N={size:,}" for size in SIZES)]]
    for name, sizes in stored.items():
        row = [name]
        for work, direction in (("commit", "up"), ("resume", "down")):
            costs = [seen[size][name][work] if name in seen[size] else None for size in SIZES]
            row += ["" if c is None else f"{c.round_trips:.0f}, {getattr(c, direction) / 1024:,.1f}" for c in costs]
        rows.append([*row, *("" if count is None else f"{count / 1024:,.0f}" for count in sizes.values())])
    return report.markdown(rows)


def _failures(verdicts: dict[str, tuple[str, str]]) -> str:
    titles = ["store", "two workers add to the same read", "each reply of an add lost once"]
    return report.markdown([titles, *([name, *verdict] for name, verdict in verdicts.items())])


def main() -> None:
    every = agent_stores.stores_of_sdks()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversations", nargs="*", type=Path, help="JSON Lines files; default: those of the package")
    parser.add_argument("--sdk", action="append", choices=every, help="measure this SDK only; may be repeated")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of the rounds of each line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # stores log the failures that this run causes
    warnings.simplefilter("ignore")
    messages = peers.load_messages(options.conversations or [SHIPPED])
    print(f"messages of {sum(len(json.dumps(each)) for each in messages) / len(messages):,.0f} bytes of JSON\n")
    runs = {}
    with EmbeddedServer(port=0) as server:
        for sdk in options.sdk or every:
            print(f"{sdk} {report.version_of(sdk)}\n")
            runs[sdk] = asyncio.run(measure(server.url, every[sdk], messages, options.seconds))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
