"""The rights of `lash_redis.acl` are sufficient, minimal and limited to one namespace.

The other tests of this folder also run under these rights: see `open_cache` in conftest.py.
"""

from __future__ import annotations

import pytest
import redis

from lash_redis import (
    ActivePath,
    Append,
    BackendError,
    DocumentWrite,
    FullGraph,
    HydratedSessionCheckpoint,
    InvalidRecord,
    ReplaceFull,
    Replicas,
    SessionCache,
    SessionMeta,
    SessionStoreCreateRequest,
    StoreOptions,
    Unchanged,
)
from lash_redis.acl import ROLES, SHOWS_ALL, commands_of, key_patterns, rules
from lash_redis.cli.rights import MAY
from lash_redis.transfer import export_sessions, import_sessions
from lash_redis.transport.request import Request
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, blob_keys, chain, commit, node, tools
from tests.support.servers import snapshot

HANDSHAKE = {"hello", "auth", "client", "client|setinfo", "select", "ping", "acl", "acl|setuser", "config", "info",
             "config|resetstat", "command", "script|flush", "flushall"}  # fmt: skip


async def everything(cache: SessionCache, *, audits: bool) -> None:
    """Call every method, so that the server runs every command."""
    store = await cache.create(SessionStoreCreateRequest("chat", parent_session_id="mother"), ttl=1000)
    states = HydratedSessionCheckpoint(tool_state=tools(), execution_state=b"1")
    await store.commit_runtime_state(commit(None, append("a", "b"), checkpoint=states))
    made = commit(1, append("c", parent="a"), checkpoint=states)
    for _ in range(2):
        await store.commit_runtime_state(made, ttl=2000, durability=Replicas(1, 1))
    await store.commit_runtime_state(commit(2, Unchanged("c"), checkpoint=HydratedSessionCheckpoint()))
    await store.save_session_meta(SessionMeta("chat", "n", "t", "m"))
    await store.enqueue_input("hello", "i")
    assert len(await store.pending_inputs()) == 1
    documents = cache.documents("thread")
    await documents.write(DocumentWrite(put={b"ca": b"1", b"cb": b"2"}, remove=[b"cb"]))
    await documents.page(b"c", b"d", limit=1, children="w")
    await documents.parts([b"pa"])
    await documents.part_names()
    await cache.delete("thread", reusable=True)
    read = await store.load_session(FullGraph())
    assert await store.refresh(read) is read
    await store.load_session(ActivePath("b"))
    await store.load_head()
    await store.load_node("b")
    await store.load_session_meta()
    await store.tombstone_nodes(["b"])
    assert len((await store.refresh(read)).graph.nodes) == 2
    await store.vacuum()
    await store.update(lambda read: commit(None, Unchanged(read.graph.leaf_node_id), consumes=["i"]), since=read)
    await store.touch()
    await store.touch(ttl=None)
    async with await store.acquire_lease("worker") as lease:
        await lease.renew()
        await store.load_lease()
    await cache.fork("chat", "new")
    await cache.session("gone").commit_runtime_state(commit(None, session_id="gone"))
    cut = cache.session("cut")
    await cut.commit_runtime_state(commit(None, Append([*chain("a", "b"), node("c", "a")], "c"), session_id="cut"))
    graph = (await cut.load_session(FullGraph())).graph
    shorter = ReplaceFull(graph.first(2))
    await cut.commit_runtime_state(commit(1, shorter, session_id="cut"))
    assert len([info async for info in cache.sessions()]) == 4
    await cache.delete("new")
    owned = await cache.create(SessionStoreCreateRequest("owned"), owner="alice", title="Trip", ttl=1000)
    await owned.commit_runtime_state(commit(None, append("a"), session_id="owned"))
    await owned.set_title("Rome")
    assert [info.title async for info in cache.sessions(owner="alice")] == ["Rome"]
    assert (await cache.delete_owned("alice")).deleted_session_count == 1
    ref = await cache.put_blob(b"\xc4\x01x")
    assert await cache.get_blob(ref)
    await store.gc_unreachable()
    await cache.gc()
    await import_sessions(cache, [line async for line in export_sessions(cache)])
    async with cache.watch() as watch:
        watch.add("never")
        watch.add("chat", 0)
        assert (await anext(watch)).session_id == "chat"
        watch.remove("chat")
        watch.add("gone", 0)
        assert (await anext(watch)).session_id == "gone"
    assert (await cache.audit(scan=False, repair=True)).problems == ()
    if audits:
        assert (await cache.audit(repair=True)).problems == ()
        assert await cache.shared.read([("MEMORY", "USAGE", cache.layout.key)], atomic=False) != [None]


def cache_for(server, role: str, namespace: str = "acme") -> SessionCache:
    client = server.account("acme", role)
    return SessionCache(client, namespace, options=StoreOptions(shards=2, allow_eval=role != "runner"))


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_can_call_its_methods(role, real_server):
    cache = cache_for(real_server, role)
    await everything(cache, audits=role == "auditor")
    if role == "loader":
        await cache.preload()


async def test_the_rights_are_exactly_the_commands_that_the_methods_run(real_server):
    """`INFO commandstats` contains every command that the server has run."""
    admin = real_server.client()
    await admin.script_flush()
    await admin.config_resetstat()
    cache = cache_for(real_server, "auditor")
    await everything(cache, audits=True)
    await cache.shared._backend.send(Request([("EVAL", "return redis.call('TIME')", 0)]))
    called = {name.removeprefix("cmdstat_") for name in await admin.info("commandstats")}
    if "memory" in called:  # Redis 6.2 counts no subcommands
        called = called - {"memory"} | {"memory|usage"}
    assert set(commands_of("auditor")) - called == set()
    assert called - set(commands_of("auditor")) <= HANDSHAKE


@pytest.mark.parametrize("role", ROLES)
async def test_an_account_cannot_access_another_namespace(role, real_server):
    admin = SessionCache(real_server.client(), "acme.two", options=StoreOptions(shards=2))
    await admin.session("chat").commit_runtime_state(commit(None, append("a")))
    cache = cache_for(real_server, role, "acme.two")
    for call in (
        cache.session("chat").load_session(FullGraph()),
        cache.session("chat").commit_runtime_state(commit(None, append("b"))),
        cache.delete("chat"),
        cache.put_blob(b"x"),
    ):
        with pytest.raises(BackendError, match=r"(?i)permission"):
            await call
    assert (await admin.session("chat").load_head()).head_revision == 1


SECRET = "tenant-two"
"""In every id of the other namespace."""


async def other_namespace(real_server) -> SessionCache:
    """A namespace with sessions, an owner and blobs whose names contain `SECRET`."""
    cache = SessionCache(real_server.client(), "acme.two", options=StoreOptions(shards=2))
    store = cache.session(f"{SECRET}-chat", owner=f"{SECRET}-owner")
    states = HydratedSessionCheckpoint(tool_state=tools(SECRET))
    await store.commit_runtime_state(commit(None, append("a"), session_id=f"{SECRET}-chat", checkpoint=states))
    return cache


def lets_every_role_scan(old):
    return lambda role, **how: sorted({*old(role, **how), "scan"})


@broken_by(Python("acl:commands_of", lets_every_role_scan, "lets every role SCAN"))
@pytest.mark.parametrize("role", sorted(set(ROLES) - {"auditor"}))
async def test_an_audit_without_scan_shows_its_account_nothing_of_another_namespace(role, real_server):
    other = await other_namespace(real_server)
    (foreign,) = [blob.decode() for blob in await blob_keys(real_server.client())]
    cache = cache_for(real_server, role)
    await cache.session("mine").commit_runtime_state(commit(None, append("a"), session_id="mine"))
    replies, send = [], cache.shared._backend.send

    async def recorded(request, **how):
        replies.append(await send(request, **how))
        return replies[-1]

    cache.shared._backend.send = recorded
    report = await cache.audit(scan=False, repair=True)
    assert (report.session_count, report.problems) == (1, ())
    assert SECRET not in repr(replies)
    assert foreign.rpartition(":")[2] not in repr(replies)
    client = real_server.account("acme", role)
    head = other.layout.session(f"{SECRET}-chat").head
    async with other.watch() as watch:
        watch.add(f"{SECRET}-chat", 0)
        await anext(watch)
        for command in (
            ("SCAN", 0), ("SCAN", 0, "MATCH", "lash2:{acme:*"), ("KEYS", "*"), ("KEYS", "lash2:{acme:*"),
            ("RANDOMKEY",), ("DBSIZE",), ("PUBSUB", "CHANNELS"), ("CLIENT", "LIST"), ("MONITOR",), ("SLOWLOG", "GET"),
            ("INFO",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("PSUBSCRIBE", "*"), ("SUBSCRIBE", head),
            ("EXISTS", head), ("HGETALL", head), ("MEMORY", "USAGE", foreign), ("OBJECT", "ENCODING", foreign),
            ("EVAL", "return redis.call('SCAN', 0)", 0), ("EVAL", "return redis.call('HGETALL', KEYS[1])", 1, head),
        ):  # fmt: skip
            with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|can't run|may not|unknown"):
                await client.execute_command(*command)


async def test_the_auditor_sees_the_key_names_of_every_namespace_and_acl_says_so(real_server):
    """No rule of Redis limits SCAN to some keys. The values of the other namespace stay unreadable."""
    other = await other_namespace(real_server)
    client = real_server.account("acme", "auditor")
    _, keys = await client.scan(0, count=1000)
    assert any(SECRET.encode() in key for key in keys)
    assert [role for role in ROLES if "scan" in commands_of(role)] == sorted(SHOWS_ALL) == ["auditor"]
    assert "every namespace" in MAY["auditor"]
    with pytest.raises(redis.exceptions.NoPermissionError):
        await client.hgetall(other.layout.session(f"{SECRET}-chat").head)


@pytest.mark.parametrize(
    "command",
    [
        ("EVAL", "return 1", 0), ("SCRIPT", "LOAD", "return 1"), ("KEYS", "*"), ("SCAN", 0), ("CONFIG", "GET", "*"),
        ("FLUSHALL",), ("DEL", "lash2:{acme:0}:head:chat"), ("SET", "other", "x"), ("GET", "other"),
        ("HSET", "lash2:{acme2:0}:head:chat", "a", "b"), ("CLIENT", "LIST"), ("MODULE", "LIST"),
    ],
    ids=lambda command: " ".join(map(str, command[:2])),
)  # fmt: skip
async def test_the_runner_cannot_send_other_commands_or_access_other_keys(command, real_server):
    client = real_server.account("acme", "runner")
    with pytest.raises(Exception, match=r"(?i)permission|unknown"):
        await client.execute_command(*command)


async def test_without_eval_the_error_for_an_unknown_script_names_preload(server):
    cache = SessionCache(server.client(), "laws", options=StoreOptions(allow_eval=False))
    await server.client().script_flush()
    with pytest.raises(BackendError, match="preload"):
        await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    assert await cache.session("chat").load_session(FullGraph()) is None
    await SessionCache(server.client(), "laws").preload()
    await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    assert (await cache.session("chat").load_node("a")).node_id == "a"


@broken_by(
    *(
        Lua(script, "if not string.find(text, 'WRONGTYPE', 1, true) then error(text) end", "")
        for script in ("commit", "touch", "meta", "node", "tombstone", "refresh", "acquire", "renew")
    )
)
async def test_a_missing_hmget_right_is_a_backend_error_and_not_corruption(real_server):
    """Redis before 7.2 does not name the command that a script may not call."""
    admin, role = real_server.client(), "auditor"
    store = SessionCache(admin, "acme", options=StoreOptions(shards=2)).session("chat")
    await store.commit_runtime_state(commit(None, append("a", "b")))
    await store.tombstone_nodes(["b"])
    read, lease = await store.load_session(FullGraph()), await store.acquire_lease("worker")
    cache = cache_for(real_server, role)
    await admin.execute_command("ACL", "SETUSER", f"{role}-acme", "-hmget")
    before, store = await snapshot(admin), cache.session("chat")
    in_scripts = {
        "commit": lambda: store.commit_runtime_state(commit(1, append("c", parent="a"))),
        "touch": store.touch,
        "save the meta": lambda: store.save_session_meta(SessionMeta("chat", "n", "t", "m")),
        "enqueue an input": lambda: store.enqueue_input("x"),
        "load a node": lambda: store.load_node("a"),
        "tombstone": lambda: store.tombstone_nodes(["a"]),
        "refresh": lambda: store.refresh(read),
        "acquire": lambda: store.acquire_lease("worker"),
        "renew": lambda: store.adopt_lease(lease).renew(),
        "release": lambda: store.adopt_lease(lease).release(),
        "delete": lambda: cache.delete("chat"),
    }
    native = {
        "load the meta": store.load_session_meta,
        "list": lambda: anext(cache.sessions()),
        "vacuum": store.vacuum,
    }
    for name, method in (in_scripts | native).items():
        names_it = name in native or real_server.kind.product == "Valkey"
        with pytest.raises(BackendError, match=r"(?i)'hmget'" if names_it else "can't run this command") as refused:
            await method()
        assert type(refused.value) is BackendError, name
        assert await snapshot(admin) == before, name


async def test_an_audit_without_the_hmget_right_fails_and_repairs_nothing(real_server):
    admin = real_server.client()
    store = SessionCache(admin, "acme", options=StoreOptions(shards=2)).session("chat")
    states = HydratedSessionCheckpoint(tool_state=tools())
    await store.commit_runtime_state(commit(None, append("a"), checkpoint=states))
    (blob,) = await blob_keys(admin)
    await admin.hset(blob, "0", 2)  # makes the audit recount the holders
    cache = cache_for(real_server, "auditor")
    await admin.execute_command("ACL", "SETUSER", "auditor-acme", "-hmget")
    before = await snapshot(admin)
    for repair in (False, True):
        with pytest.raises(BackendError, match=r"(?i)'hmget'|can't run this command"):
            await cache.audit(repair=repair)
    assert await snapshot(admin) == before


def test_key_patterns_match_one_namespace_only():
    assert key_patterns("acme") == ["lash2:{acme:*", "lash1:layout:acme"]
    with pytest.raises(InvalidRecord, match="namespace"):
        rules("a*", "runner")


def test_the_runner_can_run_scripts_but_not_load_them():
    assert "eval" not in commands_of("runner")
    assert "script|load" not in commands_of("runner")
    assert set(commands_of("runner")) < set(commands_of("loader"))
    assert not {"keys", "config", "flushall", "del", "module", "client"} & set(commands_of("auditor"))
