"""How long until the package is imported, and until a `memory://` cache answers?"""

from __future__ import annotations

import subprocess
import sys

from bench.report import Row

_READY = """
import asyncio
import lash_redis
async def main():
    async with lash_redis.connect("memory://") as cache:
        assert await cache.session("s").load_head() is None
asyncio.run(main())
"""
PROGRAMS = {"package": "import lash_redis", "client": "import redis.asyncio", "memory": _READY}


def measured(tries: int = 7) -> list[Row]:
    """Best of `tries` new processes each, in turn; the interpreter's own start is not counted."""
    best = dict.fromkeys(PROGRAMS, float("inf"))
    for _ in range(tries):
        for name, program in PROGRAMS.items():
            timer = f"import time; started = time.perf_counter()\n{program}\nprint(time.perf_counter() - started)"
            answer = subprocess.run([sys.executable, "-c", timer], capture_output=True, text=True, check=True)
            best[name] = min(best[name], float(answer.stdout) * 1000)
    client = f"redis.asyncio alone: {best['client']:.0f} ms"
    lines = [("import of the package", "package", 150), ("a memory:// cache ready, import included", "memory", 300)]
    return [
        Row(what, f"{best[name]:.0f} ms", client, best[name], budget, " ms", {"best_ms": dict(best)})
        for what, name, budget in lines
    ]
