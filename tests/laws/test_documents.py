"""Documents change together or not at all, belong to their session, and are read at one moment."""

from __future__ import annotations

import asyncio

import pytest

from lash_redis import (
    CommitTooLarge,
    Corrupt,
    Document,
    DocumentsChanged,
    DocumentsRead,
    DocumentWrite,
    FullGraph,
    InvalidRecord,
    OwnerMismatch,
    PartTaken,
    SessionDeleted,
    SessionEvicted,
    SessionExists,
    SessionStoreCreateRequest,
    StoreOptions,
)
from tests.laws.test_lifetime import is_close_to, remaining_ms
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit, key_of
from tests.support.proxy import Action, on

KEYS = ("head", "documents", "names")


async def test_a_write_stores_replaces_adds_and_removes(open_cache):
    documents = open_cache().documents("thread")
    assert await documents.read([b"ca"]) == DocumentsRead(0)
    assert await documents.write(DocumentWrite(put={b"ca": b"1", b"cb": b"2"}, add={b"cc": b"3"})) == 1
    assert await documents.write(DocumentWrite(put={b"ca": b"4"}, add={b"cc": b"5"}, remove=[b"cb", b"never"])) == 2
    read = await open_cache().documents("thread").read([b"ca", b"cb", b"cc"])
    assert read == DocumentsRead(2, (Document(b"ca", b"4"), Document(b"cc", b"3")))


@broken_by(
    Lua("document_write", "if #unlike > 3 then return unlike end", ""),
    Lua("document_write", "is_like = found == content", "is_like = true"),
    Lua("document_write", "== (expects == '+')", "== true"),
)
async def test_a_write_is_refused_if_a_document_is_not_as_expected(open_cache, keyspace):
    documents = open_cache().documents("thread")
    await documents.write(DocumentWrite(put={b"ca": b"1", b"cb": b"2"}))
    before = await keyspace()
    wrong: dict[bytes, tuple[bytes | bool, bytes | None]] = {
        b"ca": (b"2", b"1"), b"cb": (False, b"2"), b"cc": (True, None), b"cd": (b"x", None),
    }  # fmt: skip
    for name, (expected, found) in wrong.items():
        write = DocumentWrite(put={b"ca": b"9", b"cz": b"9"}, expects={b"ca": b"1", name: expected})
        with pytest.raises(DocumentsChanged) as refused:
            await documents.write(write)
        assert (refused.value.revision, refused.value.found) == (1, {name: found})
        assert await keyspace() == before
    await documents.write(DocumentWrite(put={b"cc": b"3"}, expects={b"ca": b"1", b"cb": True, b"cc": False}))


@broken_by(Lua("document_write", "revision ~= '' and tonumber(revision) ~= account.revision", "false"))
async def test_a_write_is_refused_if_the_revision_is_not_as_expected(open_cache, keyspace):
    documents = open_cache().documents("thread")
    await documents.write(DocumentWrite(put={b"ca": b"1"}, revision=0))
    before = await keyspace()
    for revision in (0, 2):
        with pytest.raises(DocumentsChanged):
            await documents.write(DocumentWrite(put={b"ca": b"2"}, revision=revision))
    assert await keyspace() == before
    assert await documents.write(DocumentWrite(put={b"ca": b"2"}, revision=1)) == 2


@broken_by(Lua("document_write", "if had and is_part(name) then return", "if false then return"))
async def test_the_content_of_a_part_never_changes(open_cache, keyspace):
    documents = open_cache().documents("thread")
    await documents.write(DocumentWrite(put={b"pa": b"1", b"ca": b"1"}))
    await documents.write(DocumentWrite(put={b"pa": b"1", b"pb": b"2"}))
    before = await keyspace()
    for name in (b"pa", b"pb"):
        with pytest.raises(PartTaken) as refused:
            await documents.write(DocumentWrite(put={b"ca": b"9", name: b"9"}))
        assert refused.value.name == name
    assert await keyspace() == before
    assert await documents.parts([b"pa", b"pz", b"pb"]) == [b"1", None, b"2"]
    assert sorted(await documents.part_names()) == [b"pa", b"pb"]


async def test_a_page_has_the_last_listed_documents_first_with_their_children(open_cache):
    documents = open_cache().documents("thread")
    names = [b"c%03d" % number for number in range(50)]
    await documents.write(DocumentWrite(put={name: name for name in (*names, b"pc", b"bz", b"d")}))
    await documents.write(DocumentWrite(put={b"w048\0b": b"2", b"w048\0a": b"1", b"w0480": b"x", b"w049": b"x"}))
    read = await documents.page(b"c", b"c049", limit=3, children="w")
    assert [document.name for document in read.documents] == [b"c048", b"c047", b"c046"]
    assert [document.children for document in read.documents] == [((b"w048\0a", b"1"), (b"w048\0b", b"2")), (), ()]
    assert [document.name for document in (await documents.page(b"c048", b"d", limit=99)).documents] == [
        b"c049",
        b"c048",
    ]
    assert (await documents.page(b"x", b"y", limit=1)).documents == ()


@broken_by(Lua("document_read", "at > what + alone", "true"))
async def test_documents_that_are_read_alone_come_first_and_without_children(open_cache):
    documents = open_cache().documents("thread")
    await documents.write(DocumentWrite(put={b"l": b"a", b"ca": b"1", b"w\0a": b"2", b"wa\0b": b"3"}))
    read = await documents.read([b"ca", b"cb"], children="w", alone=[b"l", b"m"])
    assert read.documents == (Document(b"l", b"a"), Document(b"ca", b"1", ((b"wa\0b", b"3"),)))


async def test_a_pointer_leads_to_its_document(open_cache):
    documents = open_cache().documents("thread")
    await documents.write(DocumentWrite(put={b"l": b"a\0b\0\0rest", b"ca\0b": b"1", b"wa\0b\0x": b"2"}))
    read = await documents.pointed(b"l", "c", children="w")
    assert read.documents == (Document(b"l", b"a\0b\0\0rest"), Document(b"ca\0b", b"1", ((b"wa\0b\0x", b"2"),)))
    assert (await documents.pointed(b"m", "c")).documents == ()


@broken_by(
    Lua("document_read", "local wrong = mismatch('documents', 'HLEN', documents, account.count)", "local wrong = nil"),
    Lua("document_read", "or mismatch('names', 'ZCARD', names, account.listed)", ""),
    Lua("document_read", "if not stored and redis.call('EXISTS', documents, names) > 0 then", "if false then"),
)
async def test_a_lost_key_is_reported_and_never_read_as_absence(open_cache, client):
    for name in KEYS:
        await lose_a_key(name, open_cache, client)


async def lose_a_key(name, open_cache, client) -> None:
    cache = open_cache()
    documents = cache.documents("thread")
    await documents.write(DocumentWrite(put={b"ca": b"1"}))
    await client.delete(await key_of(client, name, "thread"))
    for work in (
        lambda: documents.read([b"ca"]),
        lambda: documents.page(b"c", b"d", limit=1),
        lambda: documents.write(DocumentWrite(put={b"ca": b"2"})),
    ):
        with pytest.raises(SessionEvicted):
            await work()
    assert (await cache.delete("thread", reusable=True)).existed
    assert await documents.read([b"ca"]) == DocumentsRead(0)
    await documents.write(DocumentWrite(put={b"ca": b"2"}))


async def test_a_damaged_account_is_corrupt(open_cache, client):
    documents = open_cache().documents("thread")
    await documents.write(DocumentWrite(put={b"ca": b"1"}))
    head = await key_of(client, "head", "thread")
    for damaged in (b"1 1 1", b"1 01 1 0", b"1 2 1 0", b"x"):
        await client.hset(head, "documents", damaged)
        with pytest.raises(Corrupt):
            await documents.read([b"ca"])
        with pytest.raises(Corrupt):
            await documents.write(DocumentWrite(put={b"ca": b"2"}))


@broken_by(
    Lua("document_write", "ipairs({head, documents, names})", "ipairs({head, documents})"),
    Lua("document_write", "ipairs({head, documents, names})", "ipairs({documents, names})"),
    Lua("touch", "state, documents, names}) do", "state}) do"),
)
async def test_documents_expire_with_their_session(open_cache, client):
    cache = open_cache(ttl=100.0)
    documents = cache.documents("thread")

    async def all_expire_in(seconds: float) -> bool:
        return all(is_close_to(each, seconds) for each in await remaining_ms(client, *KEYS, session_id="thread"))

    await documents.write(DocumentWrite(put={b"ca": b"1"}))
    assert await all_expire_in(100)
    await cache.session("thread").touch(ttl=500.0)
    assert await all_expire_in(500)
    await documents.write(DocumentWrite(put={b"ca": b"2"}))
    assert await all_expire_in(500)
    await cache.session("thread").touch(ttl=None)
    assert await remaining_ms(client, *KEYS, session_id="thread") == [-1, -1, -1]


async def test_other_writes_of_the_session_leave_one_deadline(open_cache, client):
    cache = open_cache(ttl=100.0)
    store = await cache.create(SessionStoreCreateRequest("thread"), ttl=500.0)
    await cache.documents("thread").write(DocumentWrite(put={b"ca": b"1"}))
    await store.set_title("Trip")
    await store.enqueue_input("x")
    await (await store.acquire_lease(ttl=30.0)).release()
    assert all(is_close_to(each, 500) for each in await remaining_ms(client, *KEYS, session_id="thread"))
    assert [info.title async for info in cache.sessions()] == ["Trip"]


@broken_by(
    Lua("document_write", "if facts then return {'graph', session} end", ""),
    Lua("commit", "if not facts and redis.call('HEXISTS', head, 'documents') == 1 then", "if false then"),
)
async def test_a_session_has_either_a_graph_or_documents(open_cache, keyspace, monkeypatch):
    cache = open_cache()
    await cache.session("chat").commit_runtime_state(commit(None, append("a")))
    await cache.documents("thread").write(DocumentWrite(put={b"ca": b"1"}))
    before = await keyspace()
    with pytest.raises(SessionExists):
        await cache.documents("chat").write(DocumentWrite(put={b"ca": b"1"}))
    for made in (commit(None, append("a"), session_id="thread"), commit(0, session_id="thread")):
        with pytest.raises(SessionExists):
            await cache.session("thread").commit_runtime_state(made)
    with pytest.raises(SessionExists):
        await cache.fork("chat", "thread")
    monkeypatch.setattr(StoreOptions, "contention_seconds", 600.0)
    async with asyncio.timeout(60):  # neither is repeated, as after a conflict with another writer
        with pytest.raises(SessionExists, match="with documents"):
            await cache.chat("thread").append({"role": "user", "content": "hi"})
        with pytest.raises(SessionExists):
            await cache.session("thread").update(lambda _: commit(None, append("a"), session_id="thread"))
    assert await keyspace() == before
    assert await cache.session("thread").load_session(FullGraph()) is None
    assert await cache.documents("chat").read([b"ca"]) == DocumentsRead(0)


@broken_by(
    Lua("document_write", "if stored.owner ~= stored.next_owner then", "if false then"),
    Lua("document_read", "if is_foreign(access, stored[2], stored[1] or stored[4])", "if false"),
)
async def test_documents_belong_to_the_owner_of_their_session(open_cache, keyspace):
    cache = open_cache()
    await cache.documents("thread", owner="alice").write(DocumentWrite(put={b"ca": b"1"}))
    before = await keyspace()
    for owner in ("bob",):
        with pytest.raises(OwnerMismatch):
            await cache.documents("thread", owner=owner).write(DocumentWrite(put={b"ca": b"2"}))
        assert await cache.documents("thread", owner=owner).read([b"ca"]) == DocumentsRead(0)
    assert await keyspace() == before
    assert await cache.documents("thread").write(DocumentWrite(put={b"ca": b"2"})) == 2
    assert [info.session_id async for info in cache.sessions(owner="alice")] == ["thread"]
    assert (await cache.delete_owned("alice")).deleted_session_count == 1
    assert await cache.documents("thread").read([b"ca"]) == DocumentsRead(0)


@broken_by(Lua("delete", "dead, state, documents, names)\nif marker", "dead, state)\nif marker"))
async def test_a_deleted_session_has_no_documents_and_takes_none(open_cache):
    cache = open_cache()
    documents = cache.documents("thread")
    await documents.write(DocumentWrite(put={b"ca": b"1"}))
    await cache.delete("thread", reusable=True)
    assert await documents.read([b"ca"]) == DocumentsRead(0)
    assert await documents.write(DocumentWrite(put={b"cb": b"1"}, expects={b"ca": False})) == 1
    await cache.delete("thread")
    assert await documents.read([b"ca"]) == DocumentsRead(0)
    with pytest.raises(SessionDeleted):
        await documents.write(DocumentWrite(put={b"ca": b"1"}))


async def test_concurrent_writes_with_one_expectation_succeed_once(open_cache):
    documents = open_cache().documents("thread")
    await documents.write(DocumentWrite(put={b"l": b"0"}))
    writes = [DocumentWrite(put={b"l": b"%d" % number}, expects={b"l": b"0"}) for number in range(1, 20)]
    outcomes = await asyncio.gather(*(documents.write(write) for write in writes), return_exceptions=True)
    assert sum(outcome == 2 for outcome in outcomes) == 1
    assert sum(isinstance(outcome, DocumentsChanged) for outcome in outcomes) == 18


async def test_a_write_is_whole_although_its_reply_is_lost(proxy, through_proxy, open_real_cache):
    documents = through_proxy(retry_max_delay=0.01).documents("thread")
    await documents.write(DocumentWrite(put={b"ca": b"1"}))
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA", 1)
    assert await documents.write(DocumentWrite(put={b"ca": b"2", b"cb": b"2"})) == 3
    read = await open_real_cache().documents("thread").read([b"ca", b"cb"])
    assert read.documents == (Document(b"ca", b"2"), Document(b"cb", b"2"))


@pytest.mark.parametrize(
    "write",
    [
        DocumentWrite(put={b"": b""}),
        DocumentWrite(put={b"c" * 70_000: b""}),
        DocumentWrite(put={"c": b""}),  # type: ignore[dict-item]
        DocumentWrite(put={b"c": "x"}),  # type: ignore[dict-item]
        DocumentWrite(remove=["c"]),  # type: ignore[list-item]
        DocumentWrite(expects={None: True}),  # type: ignore[dict-item]
        DocumentWrite(put={b"c%d" % number: b"" for number in range(5_000)}),
        None,
    ],
)
async def test_an_invalid_write_is_refused_and_named(write, open_cache, keyspace):
    with pytest.raises(InvalidRecord):
        await open_cache().documents("thread").write(write)
    assert await keyspace() == {}


async def test_a_write_over_the_limit_is_refused_by_name(open_cache, keyspace):
    with pytest.raises(CommitTooLarge, match="max_commit_bytes"):
        await open_cache(max_commit_bytes=1_000).documents("thread").write(DocumentWrite(put={b"c": b"x" * 1_001}))
    assert await keyspace() == {}


async def test_any_bytes_are_kept(open_cache):
    documents = open_cache().documents("thr\U0001f600:{}")
    names = [b"c" + bytes([number]) for number in range(256)]
    await documents.write(DocumentWrite(put={name: name * 3 for name in names}))
    read = await documents.read(names)
    assert [(document.name, document.content) for document in read.documents] == [(name, name * 3) for name in names]


async def test_thousands_of_documents_are_written_and_paged(open_cache):
    documents = open_cache().documents("thread")
    names = [b"c%05d" % number for number in range(3_000)]
    await documents.write(DocumentWrite(put=dict.fromkeys(names, b"x")))
    found: list[bytes] = []
    high = b"d"
    while page := (await documents.page(b"c", high, limit=1_000)).documents:
        found += [document.name for document in page]
        high = page[-1].name
    assert found == names[::-1]
    await documents.write(DocumentWrite(remove=names[:2_999]))
    assert (await documents.page(b"c", b"d", limit=9)).documents == (Document(b"c02999", b"x"),)


DAMAGES = {
    "a lost document": ("documents", lambda client, key: client.hdel(key, b"ca"), "documents"),
    "lost documents": ("documents", lambda client, key: client.delete(key), "documents"),
    "a document too many": ("documents", lambda client, key: client.hset(key, b"cz", b""), "documents"),
    "a lost name": ("names", lambda client, key: client.zrem(key, b"ca"), "names"),
    "another name": ("names", lambda client, key: _rename(client, key), "names"),
    "lost names": ("names", lambda client, key: client.delete(key), "names"),
    "a lost head": ("head", lambda client, key: client.delete(key), "head"),
    "an unreadable account": ("head", lambda client, key: client.hset(key, "documents", b"1 02 3 4"), "head"),
    "a lost account": ("head", lambda client, key: client.hdel(key, "documents"), "documents"),
    "documents that never expire": ("documents", lambda client, key: client.persist(key), "deadline"),
    "names that expire early": ("names", lambda client, key: client.pexpire(key, 5_000), "deadline"),
}


async def _rename(client, key) -> None:
    await client.zrem(key, b"ca")
    await client.zadd(key, {b"cx": 0})


@broken_by(Python("protocol.commands.audit:_of_the_documents", lambda _: lambda *_: [], "checks no documents"))
async def test_an_audit_reports_damaged_documents_and_nothing_else(open_cache, client):
    cache = open_cache(shards=1, ttl=500)
    auditor = open_cache(role="auditor", shards=1)
    for what, (family, damage, kind) in DAMAGES.items():
        await client.flushall()
        for name in ("thread", "sound"):
            await cache.documents(name).write(DocumentWrite(put={b"ca": b"1", b"cb": b"2", b"p1": b"3"}))
        assert (await auditor.audit()).problems == (), what
        key = await key_of(client, family, "thread")
        await damage(client, key)
        report = await auditor.audit()
        assert {problem.kind for problem in report.problems} == {kind}, what
        assert all(problem.key.endswith(":thread") for problem in report.problems), what


@broken_by(Lua("delete", "\n  and open_documents(head, documents, names) ~= nil", ""))
async def test_the_id_of_a_deleted_session_that_had_lost_documents_is_usable_at_once(open_cache, client):
    cache = open_cache()
    for family in KEYS:
        await client.flushall()
        await cache.documents("thread").write(DocumentWrite(put={b"ca": b"1"}))
        await client.delete(await key_of(client, family, "thread"))
        report = await cache.delete("thread")
        assert (report.existed, report.closed) == (True, False), family
        await cache.documents("thread").write(DocumentWrite(put={b"ca": b"2"}))
