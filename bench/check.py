"""Is the current tree faster or slower than a given commit? Both are measured in one interleaved run on one server.

Each side is a process that runs this tree's benchmark on its own `lash_redis` and `lua`. The parent requests blocks of
one operation in random order, one side at a time. A third process runs the base again. Its difference from the base is
noise. An operation is reported as faster or slower only if its quartiles lie outside those of the noise. The ratio of a
round is the ratio of the medians of its blocks. The exit status does not depend on the result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import redis.asyncio as redis

from bench import commits, reads, report, workload
from bench.measure import Contender, interleaved, spread
from lash_redis import FullGraph, RedisSessionStore, SessionCache, StoreOptions, connect
from lash_redis.embedded import EmbeddedServer

ROOT = Path(__file__).parents[1]
SIDES = ("base", "current", "base again")
ROUNDS = 30
BLOCK_SECONDS = 0.05


# One side


async def _contenders(cache: SessionCache, cold: SessionCache) -> dict[str, Contender]:
    """Return the operations to compare, as far as this side has them."""
    tools = workload.tool_state()
    writers = {f"commit at {nodes:,} nodes": nodes for nodes in (10, 10_000)}
    found = {
        what: commits.commits_of([await commits.begin_session(cache, what, tools, nodes)])
        for what, nodes in writers.items()
    }
    await commits.begin_session(cache, "read", tools, 1000)
    await workload.Session(cache, "forked").begin(tools, workload.forked(10_000, 100, 10))
    node_id = workload.chain(500, 1, None)[0].node_id
    found |= {
        "full read of 1,000 nodes": reads.full(cache, "read"),
        "the same, components fetched": reads.full(cold, "read"),
        "the same, decoded": reads.decoded(cache, "read"),
        "path of 100 in 10,000 nodes": reads.path(cache, "forked"),
        "node of 1,000": Contender(lambda: cache.session("read").load_node(node_id)),
        "head": Contender(lambda: cache.session("read").load_head()),
    }
    if hasattr(RedisSessionStore, "refresh"):
        seen = await cache.session("read").load_session(FullGraph())
        found["refresh, nothing new"] = Contender(lambda: cache.session("read").refresh(seen))
    for number in range(200):
        listed = workload.Session(cache, f"listed-{number:03d}")
        await listed.begin(None, workload.chain(0, 2, None), states=False)
    found["page of 100 lines"] = Contender(lambda: _page(cache))
    return found


async def _page(cache: SessionCache) -> list[object]:
    return [info async for info in cache.sessions(limit=100)]


@asynccontextmanager
async def _side(url: str, namespace: str) -> AsyncIterator[dict[str, Contender]]:
    uncached = StoreOptions(blob_cache_bytes=0)
    async with connect(url, namespace=namespace) as cache, connect(url, namespace=namespace, options=uncached) as cold:
        yield await _contenders(cache, cold)


async def _serve(url: str, namespace: str) -> None:
    """Print the names of the operations, then the µs of the calls of each request, as lines of JSON."""
    async with _side(url, namespace) as contenders:
        print(json.dumps(list(contenders)), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            operation, count = json.loads(line)
            times = await interleaved({"": contenders[operation]}, count)
            print(json.dumps(times.by_name[""]), flush=True)


# The parent


class Worker:
    """A process that runs one side."""

    def __init__(self, tree: Path, url: str, namespace: str) -> None:
        command = [sys.executable, "-m", "bench.check", "--serve", url, namespace]
        self._process = subprocess.Popen(
            command, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.operations: list[str] = self._answer()

    def ask(self, *request: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"bench: a worker process ended with status {self._process.wait()}; its error is above")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@contextmanager
def trees(base: str) -> Iterator[dict[str, Path]]:
    """Make a directory for each side, with its own `lash_redis` and `lua`, and the `bench` of this tree."""
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        checkout = Path(folder, "checkout")
        _git("worktree", "add", "--detach", "--quiet", str(checkout), base)
        try:
            for side, source in {"base": checkout, "current": ROOT}.items():
                tree = Path(folder, side)
                tree.mkdir()
                for name in ("lash_redis", "lua"):
                    (tree / name).symlink_to(source / name)
                (tree / "bench").symlink_to(ROOT / "bench")
            yield {side: Path(folder, side.split()[0]) for side in SIDES}
        finally:
            _git("worktree", "remove", "--force", str(checkout))


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except subprocess.CalledProcessError as error:
        sys.exit(f"bench: git {words[0]}: {error.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Comparison:
    operation: str
    base_us: float
    """The median time of the base."""
    times: Mapping[str, tuple[float, float, float]]
    """Quartiles of the rounds' ratios to the base, by side."""

    def cells(self) -> list[str]:
        noise, changed = self.times["base again"], self.times["current"]
        verdict = "faster" if changed[2] < noise[0] else "slower" if changed[0] > noise[2] else ""
        ratios = [f"{middle:.3f} ({low:.3f} to {high:.3f})" for low, middle, high in (changed, noise)]
        return [self.operation, f"{self.base_us:,.0f}", *ratios, verdict]


def compare(operation: str, workers: Mapping[str, Worker], rounds: int) -> Comparison:
    rng, order = random.Random(rounds), list(workers)
    warm = {side: median(worker.ask(operation, 20)) for side, worker in workers.items()}
    count = max(3, min(100, int(BLOCK_SECONDS * 1e6 / warm["base"])))
    times: dict[str, list[float]] = {side: [] for side in workers}
    for _ in range(rounds):
        rng.shuffle(order)
        for side in order:
            times[side].append(median(workers[side].ask(operation, count)))
    ratios = {side: spread([a / b for a, b in zip(times[side], times["base"], strict=True)]) for side in workers}
    return Comparison(operation, median(times["base"]), ratios)


def table(found: Sequence[Comparison]) -> str:
    titles = ["operation", "base µs", "current / base (quartiles)", "base again / base", "verdict"]
    return report.markdown([titles, *(comparison.cells() for comparison in found)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    parser.add_argument("base", nargs="?", default="HEAD", metavar="COMMIT", help="the base; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of each operation (%(default)s)")
    parser.add_argument("--server", type=Path, metavar="PATH", help="a server binary; default: the wheel's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    parser.add_argument("--serve", nargs=2, metavar=("URL", "NAMESPACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_serve(*options.serve))
        return
    commit = _git("rev-parse", "--short", options.base)
    with trees(options.base) as places, EmbeddedServer(binary=options.server) as server, ExitStack() as stack:
        workers = {}
        for side, tree in places.items():
            workers[side] = Worker(tree, server.url, side.replace(" ", "-"))
            stack.callback(workers[side].close)
        shared = [name for name in workers["current"].operations if name in workers["base"].operations]
        head = asyncio.run(_header(server.url))
        found = [compare(operation, workers, options.rounds) for operation in shared]
    left_out = [name for name in workers["current"].operations if name not in shared]
    print(f"base {commit}, current {head['commit']}: " + ", ".join(f"{name} {value}" for name, value in head.items()))
    print("", table(found), sep="\n")
    if left_out:
        print(f"\nThe base does not have: {', '.join(left_out)}.")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"operation": each.operation, "base_us": each.base_us, "times": each.times} for each in found]
        options.json.write_text(json.dumps({"base": commit, "header": head, "rows": rows}, indent=1) + "\n")


async def _header(url: str) -> dict[str, Any]:
    async with redis.from_url(url) as client:
        return await report.header(client, url, quick=False)


if __name__ == "__main__":
    main()
