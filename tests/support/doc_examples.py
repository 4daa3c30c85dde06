"""Runs the Python blocks of a Markdown page, as a reader does who follows it."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import lash_redis
from tests.support.builders import append, commit
from tests.support.markdown import blocks_of
from tests.support.paths import ROOT

SESSION = "chat-42"


@asynccontextmanager
async def _readme_scope(url: str) -> AsyncIterator[dict[str, Any]]:
    """The names that `main` of the README's first example uses, and a replacement of the caller's model."""

    async def call_model(messages: Any) -> dict[str, Any]:
        return {"role": "assistant", "content": "Hello, too"}

    async with lash_redis.connect(url) as cache:
        yield {"cache": cache, "call_model": call_model}


@asynccontextmanager
async def _internals_scope(url: str) -> AsyncIterator[dict[str, Any]]:
    """A cache, and the store of a session with one node."""
    async with lash_redis.connect(url, namespace="acme") as cache:
        store = cache.session(SESSION)
        await store.commit_runtime_state(commit(0, append("m1"), session_id=SESSION))
        yield {"lash_redis": lash_redis, "cache": cache, "store": store}


@asynccontextmanager
async def _docs_scope(url: str) -> AsyncIterator[dict[str, Any]]:
    """An open cache with a chat of two messages, as docs/README.md describes it."""
    async with lash_redis.connect(url) as cache:
        question = {"role": "user", "content": "Hello", "id": "m1"}
        await cache.chat(SESSION).append(question, {"role": "assistant", "content": "Hi!", "id": "m2"})
        yield {"cache": cache}


def _scope_of(page: Path) -> Any:
    """The names that the examples of a page require, as an async context manager of a URL."""
    if page == ROOT / "README.md":
        return _readme_scope
    return _internals_scope if page.name == "walkthrough.md" else _docs_scope


async def _run_awaiting(code: Any, names: dict[str, Any], scope: Any) -> None:
    if scope is not None:
        names.update(await scope.__aenter__())
    await eval(code, names)


ADDRESS = re.compile(r'"(embedded://\w*|redis://localhost|redis\+(sentinel|cluster)://[^"]*)"')


def run_examples(page: Path, url: str) -> dict[str, Any]:
    """Run the Python blocks of a page in order in one namespace, and return it.

    A block with a top-level `await` runs in the page's event loop. Addresses of servers are those of `url`.
    """
    names: dict[str, Any] = {"__name__": "docs"}
    scope = _scope_of(page)(url)
    with asyncio.Runner() as runner:
        is_open = False
        try:
            for block in blocks_of(page):
                if block.language != "python":
                    continue
                text = "\n" * block.line + ADDRESS.sub(repr(url), block.text)
                code = compile(text, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                if not code.co_flags & inspect.CO_COROUTINE:
                    exec(code, names)
                    continue
                runner.run(_run_awaiting(code, names, None if is_open else scope))
                is_open = True
        finally:
            if is_open:
                runner.run(scope.__aexit__(None, None, None))
    return names
