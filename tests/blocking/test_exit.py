"""A process with a blocking cache ends: promptly, without a message, and without a connection that stays."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.blocking import connections, output_of, script, wait_until

BEGIN = """
import atexit, os, sys, threading, time
from lash_redis import blocking, StoreError
cache = blocking.connect(sys.argv[1])
chat = cache.chat("chat")
chat.append({"role": "user", "content": "hi"})
"""

ENDINGS = {
    "without close": "",
    "after close": "cache.close()",
    "after close twice": "cache.close(); cache.close()",
    "with a cache that was dropped": "del chat, cache",
    "with a watch that waits": "revisions = chat.store.watch(0); next(revisions)",
    "with a watch of the cache that is open": "watch = cache.watch().__enter__(); watch.add('chat', 0); next(watch)",
    "with a lease that is renewed": """
lease = chat.store.acquire_lease(ttl=5).__enter__()
renewing = lease.renewing().__enter__()
""",
    "with a stream that is open": "out = chat.stream('gen').__enter__(); out.send('a')",
    "with a list that was begun": """
for at in range(120): cache.chat(f"c{at}").append({"role": "user", "content": "x"})
listed = cache.sessions(); next(listed)
""",
    "while a daemon thread calls": """
def call():
    while True: chat.messages()
threading.Thread(target=call, daemon=True).start()
time.sleep(0.05)
""",
    "while a daemon thread waits for a watch": """
threading.Thread(target=lambda: list(chat.store.watch()), daemon=True).start()
time.sleep(0.05)
""",
    "after another thread has ended": """
def call():
    time.sleep(0.1)
    chat.append({"role": "user", "content": "late"})
threading.Thread(target=call).start()
""",
    "with a close at exit": "atexit.register(cache.close)",
    "in an exit function that was registered after the cache": """
def save(): chat.append({"role": "user", "content": "last"})
atexit.register(save)
""",
    "from a running event loop": """
import asyncio
async def main(): chat.messages(); revisions = chat.store.watch(0); next(revisions)
asyncio.run(main())
""",
    "by SystemExit in a block": """
with cache, cache.session("other").acquire_lease() as lease, lease.renewing():
    sys.exit(0)
""",
}


FORKING = """
import json, os, sys, time
from lash_redis import blocking  # once for all endings
for number, code in enumerate(json.loads(sys.stdin.read())):
    path = os.path.join(sys.argv[2], str(number))
    child = os.fork()
    if child == 0:
        errors = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(errors, 2)
        exec(compile(code, "ending", "exec"), {"__name__": "__main__"})
        sys.exit()
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    with open(path) as errors:
        print(json.dumps([os.waitstatus_to_exitcode(ended[1]) if ended[0] else "hangs", errors.read()]), flush=True)
"""
"""Runs each ending in a forked child, because starting Python and the imports take longer than an ending."""


@pytest.mark.slow
def test_a_process_ends_without_a_message_and_leaves_no_connection(url: str, tmp_path: Path) -> None:
    before = connections(url)
    with script(FORKING, url, str(tmp_path)) as process:
        codes = json.dumps([BEGIN + code for code in ENDINGS.values()])
        printed, errors = process.communicate(codes, timeout=300)
    assert errors == ""
    outcomes = dict(zip(ENDINGS, map(json.loads, printed.splitlines()), strict=True))
    assert outcomes == {ending: [0, ""] for ending in ENDINGS}
    wait_until(lambda: connections(url) == before)


@pytest.mark.slow
@pytest.mark.parametrize("own", ["embedded://", "embedded://{directory}", "memory://"])
def test_a_process_with_a_server_of_its_own_ends_without_a_message(own: str, tmp_path: Path) -> None:
    output_of(BEGIN + "revisions = chat.store.watch(0); next(revisions)", own.format(directory=tmp_path))


def test_a_call_in_an_exit_function_that_was_registered_before_the_import_is_refused_by_name(url: str) -> None:
    code = """
import atexit
def late():
    try: chat.messages()
    except StoreError as error: print(error)
atexit.register(late)
"""
    assert output_of(code + BEGIN, url) == "store backend error: this cache was closed, because the interpreter exits\n"


@pytest.mark.slow
def test_a_process_ends_although_its_server_is_frozen(url: str) -> None:
    code = """
import subprocess
from lash_redis.embedded import EmbeddedServer
server = EmbeddedServer(); server.start()
sys.argv[1] = server.url
"""
    frozen = """
import redis
pid = redis.Redis.from_url(server.url).info("server")["process_id"]
threading.Thread(target=lambda: list(chat.store.watch()), daemon=True).start()
time.sleep(0.1)
os.kill(pid, 19)
"""
    output_of("import sys\n" + code + BEGIN + frozen, url)


INTERRUPTED = """
try:
    print("ready", flush=True)
    {wait}
except KeyboardInterrupt:
    print("interrupted", len(chat.messages()), chat.store.load_lease())
"""

WAITS = {
    "a call": "chat.store.acquire_lease(wait=60.0)",
    "a watch": "next(chat.store.watch())",
    "a watch of the cache": "next(cache.watch().__enter__())",
    "a function of update": "chat.store.update(lambda read: time.sleep(60))",
    "progress": "cache.gc(lambda done, shards: time.sleep(60))",
}


@pytest.mark.parametrize(
    "wait", [pytest.param(wait, marks=() if wait == "a call" else pytest.mark.slow) for wait in WAITS]
)
def test_an_interrupt_ends_a_waiting_call_and_the_cache_works_afterwards(wait: str, url: str) -> None:
    held = "held = cache.session('chat').acquire_lease('other', 60.0); release = held.release\n"
    code = BEGIN + (held if wait == "a call" else "") + INTERRUPTED.format(wait=WAITS[wait])
    with script(code, url) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)  # most likely, the call waits by now
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=30)
    assert errors == ""
    assert printed.startswith("interrupted 1 ")
    assert process.returncode == 0


def test_an_interrupt_just_before_the_wait_of_a_call_ends_the_call_too(url: str) -> None:
    """A signal that arrives when the interpreter is about to wait does not end that wait, nor does `interrupt_main`."""
    code = """
import _thread
held = cache.session("other").acquire_lease(ttl=600.0)
try:
    threading.Timer(0.3, _thread.interrupt_main).start()
    cache.session("other").acquire_lease(wait=60.0)
except KeyboardInterrupt:
    print("interrupted", len(chat.messages()))
held.release()
"""
    assert output_of(BEGIN + code, url) == "interrupted 1\n"


@pytest.mark.slow
def test_an_interrupted_claim_holds_no_lease(url: str) -> None:
    """A claim is interrupted at any moment of its wait, also when the server has given it the lease already."""
    code = """
import signal
def ring(_, frame):
    if frame.f_code.co_name == "receive" and not frame.f_locals["self"].is_done:
        raise TimeoutError("the alarm")
signal.signal(signal.SIGALRM, ring)
store, cut = chat.store, 0
for at in range(100):
    signal.setitimer(signal.ITIMER_REAL, 0.0001 + at * 0.00001)
    try:
        lease = store.acquire_lease(ttl=60.0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        lease.release()
    except TimeoutError:
        cut += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert store.load_lease() is None, at
print(cut > 0)
"""
    assert output_of(BEGIN + code, url) == "True\n"
