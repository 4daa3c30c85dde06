"""How long until the package is imported, and until a `memory://` cache answers?"""

from __future__ import annotations

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

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


def measure(tries: int = 7) -> list[Row]:
    """Measure the best of `tries` new processes for each program, in rotation, without the interpreter's own start.

    Modules are compiled first, as pip does at installation, even if PYTHONDONTWRITEBYTECODE is set.
    """
    best = dict.fromkeys(PROGRAMS, float("inf"))
    with TemporaryDirectory() as compiled:
        for program in PROGRAMS.values():
            _milliseconds(program, compiled)
        for _ in range(tries):
            for name, program in PROGRAMS.items():
                best[name] = min(best[name], _milliseconds(program, compiled))
    client = f"redis.asyncio alone: {best['client']:.0f} ms"
    lines = [("import of the package", "package", 150), ("a memory:// cache ready, import included", "memory", 300)]
    return [
        Row(what, f"{best[name]:.0f} ms", client, best[name], budget, " ms", {"best_ms": dict(best)})
        for what, name, budget in lines
    ]


def _milliseconds(program: str, compiled: str) -> float:
    """Return how long a new process takes for a program; `compiled` is the directory of compiled modules."""
    timer = f"import time; started = time.perf_counter()\n{program}\nprint(time.perf_counter() - started)"
    keeping = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
    answer = subprocess.run([sys.executable, "-c", timer], capture_output=True, text=True, check=True, env=keeping)
    return float(answer.stdout) * 1000
