"""Sessions with documents, such as threads of LangGraph, are exported whole and imported elsewhere unchanged."""

from __future__ import annotations

import asyncio
import json

import pytest

from lash_redis import BackendError, Corrupt, DocumentWrite, ImportReport, InvalidRecord, SessionCache, SessionEvicted
from lash_redis.session.documents import Documents
from lash_redis.transfer import export_sessions, import_sessions
from lash_redis.transfer.json_steps import JsonTexts
from tests.support.breaking import Python, broken_by
from tests.support.builders import append, commit, key_of
from tests.support.proxy import Action, on

THREAD = {
    b"p\x00\xff": b"part",
    b"ca": b"",
    b"cb": bytes(range(256)),
    b"latest": b"cb\0\0",
    "é".encode(): b"x" * 100_000,
}


async def exported(cache, *session_ids) -> list[str]:
    return [line async for line in export_sessions(cache, session_ids or None)]


@broken_by(
    Python("transfer.exporting:encode_documents", lambda _: _pairs(0), "exports no document"),
    Python("session.documents:Documents.all", lambda _: _no_contents, "reads no document"),
)
async def test_a_thread_with_its_parts_and_owner_is_exported_and_imported(open_cache):
    source, target = open_cache(ttl=500), open_cache(namespace="elsewhere", shards=3)
    await source.session("chat").commit_runtime_state(commit(None, append("a")))
    for owner, name in (("alice", "thread"), (None, "other")):
        await source.documents(name, owner=owner).write(DocumentWrite(put=THREAD))
    await source.documents("other").write(DocumentWrite(put={b"cc": b"1"}, remove=[b"ca"]))
    lines = await exported(source)
    assert await import_sessions(target, lines) == ImportReport(session_count=3, is_complete=True)
    assert await target.documents("thread", owner="alice").all() == THREAD
    other = {name: content for name, content in THREAD.items() if name != b"ca"} | {b"cc": b"1"}
    assert await target.documents("other").all() == other
    page = await target.documents("thread", owner="alice").page(b"c", b"d", limit=10)
    assert [document.name for document in page.documents] == [b"cb", b"ca"]
    assert await target.documents("thread", owner="bob").all() == {}
    assert [info.owner async for info in target.sessions(owner="alice")] == ["alice"]
    assert sorted(json.dumps(json.loads(line), sort_keys=True) for line in (await exported(target))[1:]) == sorted(
        json.dumps(json.loads(line), sort_keys=True) for line in lines[1:]
    )


def _pairs(count: int):
    def encode(documents):
        yield
        return JsonTexts(["[]"] * count)

    return encode


async def _no_contents(self):
    return {}


async def test_a_repeated_import_keeps_a_thread_and_refuses_to_change_one(open_cache, keyspace):
    source, target = open_cache(), open_cache(namespace="elsewhere")
    await source.documents("thread").write(DocumentWrite(put=THREAD))
    lines = await exported(source, "thread")
    await import_sessions(target, lines)
    before = await keyspace()
    assert await import_sessions(target, lines) == ImportReport(session_count=1, present_count=1, is_complete=True)
    assert await keyspace() == before
    await target.documents("thread").write(DocumentWrite(put={b"cc": b"1"}))
    before = await keyspace()
    report = await import_sessions(target, lines)
    assert (report.session_count, report.failed_count) == (0, 1)
    assert "SessionExists" in report.failures[0]
    assert await keyspace() == before


async def test_an_import_that_ended_before_its_documents_is_completed_by_the_next(open_cache, monkeypatch):
    source, target = open_cache(), open_cache(namespace="elsewhere")
    await source.documents("thread").write(DocumentWrite(put=THREAD))
    lines = await exported(source, "thread")

    async def fails(self, contents):
        raise BackendError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Documents, "begin", fails)
        with pytest.raises(BackendError):
            await import_sessions(target, lines)
    assert await target.documents("thread").all() == {}
    assert (await import_sessions(target, lines)).session_count == 1
    assert await target.documents("thread").all() == THREAD


@pytest.mark.parametrize("action", [Action.DROP_REPLY, Action.CUT_BEFORE])
async def test_a_thread_whose_import_loses_a_reply_is_stored_and_counted(action, real_server, through_proxy, proxy):
    source, lines_of = SessionCache(real_server.client(), "elsewhere"), {}
    for name in ("1", "2"):
        await source.documents(name).write(DocumentWrite(put=THREAD))
        lines_of[name] = await exported(source, name)
    for nth, name in enumerate(lines_of, 1):  # the first script stores the meta record, the second the documents
        proxy.on_command = on(action, "EVALSHA", nth)
        report = await import_sessions(through_proxy(), lines_of[name])
        assert (report.session_count, report.failures) == (1, ())
        proxy.on_command = lambda command: Action.PASS
        assert await through_proxy().documents(name).all() == THREAD


async def test_two_imports_at_once_store_each_thread_once(open_cache):
    source = open_cache(namespace="elsewhere")
    for number in range(20):
        await source.documents(f"thread-{number}").write(DocumentWrite(put=THREAD))
    lines = await exported(source)
    reports = await asyncio.gather(*(import_sessions(open_cache(), lines) for _ in range(2)))
    assert [(report.session_count, report.failures) for report in reports] == [(20, ()), (20, ())]
    assert sum(report.present_count for report in reports) >= 20


async def test_a_thread_that_another_client_begins_during_its_import_stays(open_cache, monkeypatch):
    source, target = open_cache(namespace="elsewhere"), open_cache()
    await source.documents("thread").write(DocumentWrite(put=THREAD))
    lines, begin = await exported(source), Documents.begin

    async def late(self, contents):
        await open_cache().documents("thread").write(DocumentWrite(put={b"cc": b"1"}))
        return await begin(self, contents)

    monkeypatch.setattr(Documents, "begin", late)
    report = await import_sessions(target, lines)
    assert report.failed_count == 1
    assert "SessionExists" in report.failures[0]
    assert await target.documents("thread").all() == {b"cc": b"1"}


async def test_a_thread_of_10000_documents_is_imported_by_one_write(open_cache, keyspace):
    source, target = open_cache(), open_cache(namespace="elsewhere", max_commit_bytes=1_000)
    contents = {b"c%05d" % number: b"x" for number in range(10_000)}
    for at in range(0, 10_000, 2_000):
        part = dict(list(contents.items())[at : at + 2_000])
        await source.documents("thread").write(DocumentWrite(put=part))
    assert (await import_sessions(target, await exported(source))).session_count == 1
    assert await target.documents("thread").all() == contents
    assert (await target.documents("thread").read([])).revision == 1


@pytest.mark.parametrize(
    ("documents", "field"),
    [
        ([], "documents"), ({}, "documents"), ("x", "documents"), ([["YQ=="]], r"documents\[0\]"),
        ([["YQ==", "YQ=="], ["YQ==", ""]], r"documents\[1\]"), ([["", "YQ=="]], r"documents\[0\]"),
        ([["YQ==", 1]], r"documents\[0\]"), ([["YQ==", "Y"]], r"documents\[0\]"),
    ],
    ids=str,
)  # fmt: skip
async def test_an_invalid_line_of_documents_is_refused_by_name(documents, field, open_cache, keyspace):
    source, target = open_cache(), open_cache(namespace="elsewhere")
    await source.documents("thread").write(DocumentWrite(put=THREAD))
    head, line, end = await exported(source, "thread")
    changed = json.dumps(json.loads(line) | {"documents": documents})
    before = await keyspace()
    with pytest.raises(InvalidRecord, match=field):
        await import_sessions(target, [head, changed, end])
    assert await keyspace() == before


async def test_a_graph_with_documents_is_refused(open_cache):
    source, target = open_cache(), open_cache(namespace="elsewhere")
    await source.session("chat").commit_runtime_state(commit(None, append("a")))
    head, line, end = await exported(source, "chat")
    changed = json.dumps(json.loads(line) | {"documents": [["YQ==", "YQ=="]]})
    with pytest.raises(InvalidRecord, match="documents"):
        await import_sessions(target, [head, changed, end])


async def test_an_export_stops_at_damaged_documents_and_names_them(open_cache, client):
    cache = open_cache()
    damages = {
        "names": lambda key: client.zrem(key, b"ca"),
        "documents": lambda key: client.hdel(key, b"ca"),
        "head": lambda key: client.hset(key, "documents", b"1 x"),
    }
    for family, damage in damages.items():
        await client.flushall()
        await cache.documents("thread").write(DocumentWrite(put=THREAD))
        await damage(await key_of(client, family, "thread"))
        with pytest.raises(Corrupt) as found:
            await exported(open_cache())
        assert found.value.kind == family
    await client.flushall()
    await cache.documents("thread").write(DocumentWrite(put=THREAD))
    await client.delete(await key_of(client, "documents", "thread"))
    with pytest.raises(SessionEvicted):
        await exported(open_cache())
