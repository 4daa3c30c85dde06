"""Commands encode models into script calls and decode replies; no test here needs a server."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgpack
import pytest

from lash_redis import (
    ActivePath,
    Append,
    BackendError,
    CommitIdReused,
    Corrupt,
    EventPayload,
    HeadRevisionConflict,
    HydratedSessionCheckpoint,
    InvalidLeaf,
    InvalidParent,
    InvalidRecord,
    MissingBlob,
    NodeIdCollision,
    OutcomeUnknown,
    PluginSessionSnapshot,
    ReplaceFull,
    RuntimeCommit,
    SessionDeleted,
    SessionEvicted,
    SessionGone,
    SessionGraph,
    SessionMeta,
    SessionNodeRecord,
    StoreOptions,
    StreamClaim,
    TokenLedgerEntry,
    TokenUsage,
    Unchanged,
)
from lash_redis.errors import SessionExists
from lash_redis.protocol import commands, scripts
from lash_redis.protocol.blob_cache import WrittenTools
from lash_redis.protocol.commands.prepared_commit import PreparedCommit, prepare_in_steps
from lash_redis.protocol.commands.vacuum import Tombstones
from lash_redis.protocol.component_refs import NO_REFS, ComponentRefs
from lash_redis.protocol.keys import Layout
from lash_redis.protocol.steps import at_once
from tests.support.builders import append, chain, commit, node, replace_full, tools, used

LAYOUT = Layout("acme", 1)
KEYS = LAYOUT.session("chat")
PREFIX = "lash2:{acme:0}:"
OPTIONS = StoreOptions()


def user(node_id: str) -> SessionNodeRecord:
    return SessionNodeRecord(node_id, None, "t", EventPayload({"Conversation": {"role": "User"}}))


def prepared(made: RuntimeCommit) -> PreparedCommit:
    return at_once(prepare_in_steps(made, OPTIONS, WrittenTools(0)))


def called(made: RuntimeCommit, before: ComponentRefs = NO_REFS, ttl_ms: int = 0) -> commands.calls.ScriptCall:
    return commands.commit.call(KEYS, prepared(made), before, (), ttl_ms, OPTIONS).call


def replied(made: RuntimeCommit, reply: Any) -> Any:
    return commands.commit.reply(called(made), prepared(made), KEYS, reply)


# commit


def test_the_keys_of_a_commit_are_those_of_its_session_and_its_blobs():
    made = commit(None, checkpoint=HydratedSessionCheckpoint(tool_state=tools(), execution_state=b"1"))
    ref = sha256(msgpack.packb(tools().to_msgpack())).hexdigest()
    assert list(called(made).keys) == [
        f"{PREFIX}head:chat",
        f"{PREFIX}log:chat",
        f"{PREFIX}nodes:chat",
        f"{PREFIX}jumps:chat",
        f"{PREFIX}dead:chat",
        f"{PREFIX}state:chat",
        f"{PREFIX}sessions",
        f"{PREFIX}expiries",
        f"{PREFIX}orphans",
        f"{PREFIX}sessions:",
        f"{PREFIX}expiries:",
        f"{PREFIX}streams:chat",
        f"{PREFIX}streams:chat",
        f"{PREFIX}blob:{ref}",
    ]


def test_a_commit_that_finishes_a_stream_passes_its_keys_and_its_claim():
    call = called(commit(None, finishes=StreamClaim("chat", "gen 1", "token", 7)))
    assert list(call.keys[11:]) == [f"{PREFIX}streams:chat", f"{PREFIX}events:4:chat:gen 1"]
    assert call.args[26] == "7 token gen 1"


def test_all_keys_of_a_commit_share_one_hash_slot():
    made = commit(None, append("a"), checkpoint=HydratedSessionCheckpoint(tool_state=tools(), execution_state=b"1"))
    assert {key[: key.index("}") + 1] for key in called(made).keys} == {"lash2:{acme:0}"}


def test_commit_arguments_start_with_the_counts_of_their_lists():
    made = commit(
        7,
        Append([user("a"), node("b", "a")], "b"),
        checkpoint=HydratedSessionCheckpoint(execution_state=b"1"),
        usage_deltas=[used(input=1, output=2, cached=3, reasoning=4)],
    )
    call = called(made, ttl_ms=5_000)
    args = call.args
    assert call.script is scripts.COMMIT
    assert args[:3] == ["chat", 7, ""]
    assert [len(args[3]), len(args[4])] == [8, 8]
    assert [len(args[5]), len(args[6])] == [0, 99]
    assert args[8:12] == ["@1", 5_000, "", 60_000]
    assert args[12:20] == [0, 0, 1, 2, "u-", 0, "", ""]
    run = [int(number) for number in args[20].split()]
    assert (len(run), run[4:]) == (6, [0, 0])
    assert args[21:23] == [b"", b"\0" + msgpack.packb(b"1")]
    assert args[23:27] == ["", "", 0, ""]
    assert args[28:32] == [1, 2, 3, 4]
    assert args[32:36] == ["a", "b", "-", ""]
    assert [len(args), type(args[36]), type(args[37])] == [38, bytes, bytes]


@pytest.mark.parametrize(
    ("made", "lenient"),
    [
        (commit(7, replace_full("a")), False),
        (commit(7, append("a", "a")), False),
        (commit(7, append("a")), True),
        (commit(7, append(*(f"n{number}" for number in range(501)))), False),
    ],
    ids=["a replacement", "a faulty graph", "lenient checks", "501 nodes"],
)
def test_the_replace_script_makes_every_commit_except_short_strict_appends(made, lenient):
    options = replace(OPTIONS, graph_checks="lenient") if lenient else OPTIONS
    call = commands.commit.call(KEYS, prepared(made), NO_REFS, (), 0, options).call
    assert call.script is scripts.REPLACE
    assert call.args[24] == ("lenient" if lenient else "strict")


@pytest.mark.parametrize(("own_ttl_ms", "sent"), [(None, ""), (0, 0), (7_000, 7_000)])
def test_a_commit_sends_its_own_ttl_and_the_ttl_of_the_cache(own_ttl_ms, sent):
    made = commands.commit.call(KEYS, prepared(commit(None)), NO_REFS, (), 5_000, OPTIONS, own_ttl_ms=own_ttl_ms)
    assert made.call.args[9:11] == [5_000, sent]


def test_a_commit_with_an_origin_sends_the_initial_data_of_its_session():
    meta = SessionMeta("chat", "name", "now", "m", parent_session_id="old")

    def sent(origin: commands.commit.Origin) -> Any:
        made = commands.commit.call(KEYS, prepared(commit(0)), NO_REFS, (), 0, OPTIONS, origin=origin)
        return made.call.args[25:29]

    assert sent(commands.commit.Origin()) == ["new", b"", b"", ""]
    origin, history, record, parent = sent(commands.commit.Origin(meta, 3, 1_700_000_000_000, b"receipts"))
    assert (origin, history, parent) == ("3 1700000000000", b"receipts", "old")
    stored = commands.reads.meta_reply(KEYS, [[record, None, None, None], 0, 0, 0, 0, 0])
    assert stored == commands.reads.StoredMeta(meta, record)


@pytest.mark.parametrize(
    ("event", "mark"),
    [
        ({"Conversation": {"role": "User"}}, "u"),
        ({"Conversation": {"role": "Assistant"}}, "-"),
        ({"Conversation": {}}, "-"),
        ({"Conversation": None}, "-"),
        ({"Mode": {"role": "User"}}, "-"),
        (None, "-"),
    ],
)
def test_only_messages_of_the_user_are_marked(event, mark):
    assert prepared(commit(None, Append([SessionNodeRecord("a", None, "t", EventPayload(event))], "a"))).users == mark


def test_blob_keys_are_ordered_acquired_then_kept_then_released():
    names = HydratedSessionCheckpoint(tool_state=tools(), plugin_snapshot_ref="a" * 64)
    tool_ref = prepared(commit(None, checkpoint=names)).refs[0]
    gone = "f" * 64
    before = ComponentRefs.of((tool_ref, None, gone), "h-h")
    call = called(commit(None, checkpoint=names), before=before)
    assert [key[-64:] for key in call.keys[13:]] == ["a" * 64, tool_ref, gone]
    assert call.args[12:14] == [1, 1]


PLUGINS = PluginSessionSnapshot({})
PLUGIN_REF = sha256(msgpack.packb(PLUGINS.to_msgpack())).hexdigest()


@pytest.mark.parametrize(
    ("before", "made", "after", "sent"),
    [
        ((None, "-"), {"plugin_snapshot": PLUGINS}, (PLUGIN_REF, "p"), True),
        ((PLUGIN_REF, "p"), {"plugin_snapshot": PLUGINS}, (PLUGIN_REF, "p"), False),
        ((PLUGIN_REF, "h"), {"plugin_snapshot": PLUGINS}, (PLUGIN_REF, "h"), False),
        (("a" * 64, "p"), {"plugin_snapshot": PLUGINS}, (PLUGIN_REF, "p"), True),
        (("a" * 64, "p"), {"plugin_snapshot_ref": "a" * 64}, ("a" * 64, "p"), False),
        (("a" * 64, "p"), {"plugin_snapshot_ref": "b" * 64}, ("b" * 64, "h"), False),
        (("a" * 64, "p"), {}, (None, "-"), False),
    ],
    ids=["new", "kept", "kept as a blob", "replaced", "kept by its ref", "taken by its ref", "dropped"],
)
def test_a_new_component_is_sent_as_private_and_an_unchanged_one_is_not_sent(before, made, after, sent):
    prior = ComponentRefs.of((None, before[0], None), f"-{before[1]}-")
    made = commands.commit.call(
        KEYS, prepared(commit(1, checkpoint=HydratedSessionCheckpoint(**made))), prior, (), 0, OPTIONS
    )
    assert (made.after.refs[1], made.after.kinds[1]) == after
    assert made.call.args[21] == (b"\0" + msgpack.packb(PLUGINS.to_msgpack()) if sent else b"")
    assert made.call.args[5:7] == [prior.stored, made.after.stored]


def links(*nodes, replaces: bool = False) -> list[str]:
    delta = ReplaceFull(SessionGraph(nodes, nodes[-1].node_id)) if replaces else Append(nodes, nodes[-1].node_id)
    return prepared(commit(None, delta)).links


def test_a_link_encodes_the_parent_of_a_node():
    assert links(node("a"), node("b", "a"), node("c", "a"), node("d", "x"), node("e", "d")) == ["-", "", "@0", "=x", ""]


@pytest.mark.parametrize(
    ("graph", "leaf"),
    [
        (Unchanged(), ""),
        (Unchanged("x"), "=x"),
        (append("a", "b"), "@1"),
        (Append(chain("a", "b"), "a"), "@0"),
        (Append(chain("a"), "x"), "=x"),
        (Append((), None), ""),
        (Append(()), "~"),
        (Append(chain("a", "b")), "@1"),
        (replace_full("a", "b"), "@1"),
        (replace_full(), ""),
    ],
)
def test_a_leaf_is_encoded_as_a_node_of_the_commit_a_stored_node_or_none(graph, leaf):
    assert called(commit(None, graph)).args[8] == leaf


@pytest.mark.parametrize(
    "graph", [append("a", "a"), Append([node("a", "a")], "a"), ReplaceFull(SessionGraph(chain("a"), "x"))]
)
def test_a_faulty_commit_sends_no_nodes(graph):
    args = called(commit(None, graph)).args
    assert (args[23], args[15], args[16], len(args)) == ("faulty", 0, "", 34)


def test_the_meaning_of_a_commit_excludes_its_id_revision_and_timestamps():
    one = commit(None, Append(chain("a", timestamp="1"), "a"), usage_deltas=[used(input=1), used(input=2)])
    two = commit(5, Append(chain("a", timestamp="2"), "a"), usage_deltas=[used(input=3)], builds_on="x")
    assert one.commit_id != two.commit_id
    assert prepared(one).meaning == prepared(two).meaning


def test_the_boundaries_of_nodes_are_part_of_the_meaning_of_a_commit():
    one = commit(None, Append([node("a", text="b"), node("c", "a")], "c"))
    two = commit(None, Append([node("a", text="bc"), node("c", "a")], "c"))
    assert prepared(one).meaning != prepared(two).meaning


MADE = commit(3, Append([node("a"), node("b", "x")], "b"), usage_deltas=[used("turn", "opus", input=1)])


@pytest.mark.parametrize(("word", "replayed"), [(b"committed", False), (b"replayed", True)])
def test_a_commit_reply_decodes_to_its_result(word, replayed):
    result = replied(MADE, [word, b"chat", b"9007199254740993"])
    assert (result.head_revision, result.replayed, result.commit_id) == (2**53 + 1, replayed, MADE.commit_id)
    assert result.checkpoint_ref == prepared(MADE).checkpoint_ref


@pytest.mark.parametrize(
    ("reply", "error", "details"),
    [
        ([b"conflict", b"chat", b"9007199254740993"], HeadRevisionConflict, {"expected": 3, "actual": 2**53 + 1}),
        ([b"conflict", b"chat", b"0"], SessionGone, {"expected": 3, "actual": 0}),
        ([b"deleted", b"chat"], SessionDeleted, {}),
        ([b"exists", b"chat", b"2"], SessionExists, {"expected": 3, "actual": 2}),
        ([b"reused", b"chat"], CommitIdReused, {"session_id": "chat", "commit_id": MADE.commit_id}),
        ([b"collision", b"chat", 1], NodeIdCollision, {"node_id": "b"}),
        ([b"parent", b"chat", 1], InvalidParent, {"node_id": "b", "parent_node_id": "x"}),
        ([b"leaf", b"chat"], InvalidLeaf, {"leaf_node_id": "b"}),
        (
            [b"corrupt", b"chat", b"log", b"short"],
            Corrupt,
            {"kind": "log", "key": f"{PREFIX}log:chat", "reason": "short"},
        ),
        ([b"corrupt", b"chat", b"blob:ab", b"x"], Corrupt, {"kind": "blob", "key": f"{PREFIX}blob:ab"}),
        ([b"evicted", b"chat", b"head", b"gone"], SessionEvicted, {"kind": "head", "key": f"{PREFIX}head:chat"}),
    ],
)
def test_a_refusal_is_raised_as_its_error_with_all_details(reply, error, details):
    with pytest.raises(error) as raised:
        replied(MADE, reply)
    assert type(raised.value) is error
    assert {name: getattr(raised.value, name) for name in details} == details


def test_a_conflict_of_a_first_commit_is_not_session_gone():
    with pytest.raises(HeadRevisionConflict) as raised:
        replied(replace(MADE, expected_head_revision=0), [b"conflict", b"chat", b"0"])
    assert type(raised.value) is HeadRevisionConflict


@pytest.mark.parametrize(
    ("counter", "name"), list(enumerate(["input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens"]))
)
def test_an_overflow_names_source_model_and_counter(counter, name):
    with pytest.raises(InvalidRecord) as raised:
        replied(MADE, [b"overflow", b"chat", 0, counter])
    assert [part in str(raised.value) for part in (name, "turn", "opus")] == [True] * 3


@pytest.mark.parametrize(
    ("graph", "error"),
    [
        (append("a", "a"), NodeIdCollision),
        (Append([node("a", "b"), node("b")], "b"), InvalidParent),
        (ReplaceFull(SessionGraph(chain("a"), "x")), InvalidLeaf),
        (Append([node("a", "a"), node("b"), node("b")], "x"), NodeIdCollision),
    ],
)
def test_a_faulty_reply_raises_the_error_found_before_sending(graph, error):
    with pytest.raises(error):
        replied(commit(3, graph), [b"faulty", b"chat"])


def test_a_refs_reply_contains_the_refs_to_send_instead():
    one, three = "1" * 64, "3" * 64
    stored = b"h" + bytes.fromhex(one) + b"-" + bytes(32) + b"p" + bytes.fromhex(three)
    moved = replied(MADE, [b"refs", b"chat", stored, b"alice"])
    assert moved == commands.calls.RefsMoved(ComponentRefs.of((one, None, three), "h-p"), "alice")
    assert moved.refs.stored == stored
    assert replied(MADE, [b"refs", b"chat", b"", b""]) == commands.calls.RefsMoved(NO_REFS, "")


def test_a_missing_reply_decodes_to_the_refs_of_the_missing_blobs():
    made = commit(None, checkpoint=HydratedSessionCheckpoint(tool_state_ref="1" * 64, execution_state_ref="2" * 64))
    assert replied(made, [b"missing", b"chat", 0, 1]) == commands.commit.BlobsMissing(("1" * 64, "2" * 64))
    assert replied(made, [b"missing", b"chat", 1]) == commands.commit.BlobsMissing(("2" * 64,))
    error = commands.commit.missing_blob(prepared(made), "2" * 64)
    assert isinstance(error, MissingBlob)
    assert error.component == "execution_state"


# Malformed replies

MALFORMED = [
    None,
    b"committed",
    1,
    [],
    [b"committed"],
    [b"committed", b"other", b"1"],
    [b"committed", None, b"1"],
    [b"committed", "chat", b"1"],
]


@pytest.mark.parametrize("reply", MALFORMED)
def test_a_reply_that_does_not_match_its_call_leaves_the_outcome_unknown(reply):
    with pytest.raises(OutcomeUnknown):
        replied(MADE, reply)
    for call in (
        commands.maintenance.tombstone_call(KEYS, ["a"]),
        commands.vacuum.call(KEYS, Tombstones(), 0),
        commands.maintenance.gc_call(KEYS.shard, "chat", []),
    ):
        with pytest.raises(OutcomeUnknown):
            commands.calls.status(call, reply, KEYS)


@pytest.mark.parametrize("word", [b"done", b"", b"COMMITTED", b"faulty"])
def test_an_unknown_reply_word_of_commit_is_a_backend_error(word):
    with pytest.raises(BackendError):
        replied(MADE, [word, b"chat", b"1"])


def test_a_call_refuses_the_reply_for_another_session():
    call = commands.maintenance.nodes_call(KEYS, ["a"])
    with pytest.raises(OutcomeUnknown):
        commands.maintenance.nodes_reply(call, KEYS, ["a"], [b"nodes", b"chat2", -1, b""])
    assert commands.maintenance.nodes_reply(call, KEYS, ["a"], [b"nodes", b"chat", -1, b""]) == [None]


def test_a_non_ascii_session_id_is_echoed_in_utf8():
    keys = LAYOUT.session("grüße")
    assert (
        commands.calls.status(commands.vacuum.call(keys, Tombstones(), 0), [b"vacuumed", "grüße".encode(), 0, 0], keys)
        == "vacuumed"
    )


# Other commands


SESSION = [f"{PREFIX}{family}:chat" for family in ("head", "log", "nodes", "jumps", "dead", "state")]
CATALOGUE = [f"{PREFIX}sessions", f"{PREFIX}expiries"]
OWNED = [f"{PREFIX}sessions:alice", f"{PREFIX}expiries:alice"]


FOUND = Tombstones([2, 4, 7], {2: 3, 4: 6}, (1, 9, 2, b"receipt"))


@pytest.mark.parametrize(
    ("call", "args"),
    [
        (commands.maintenance.tombstone_call(KEYS, ["a", "b"]), ["chat", "", "a", "b"]),
        (commands.vacuum.call(KEYS, FOUND, 1), ["chat", "", 150_000, 1, 9, 2, b"receipt", 4, 6, 7, ""]),
        (commands.maintenance.nodes_call(KEYS, ["a", "b"]), ["chat", "", 150_000, "a", "b"]),
        (commands.pages.call(KEYS, ActivePath(limit=3)), ["chat", "", "", 3, 500, 1000, ""]),
        (commands.pages.call(KEYS, ActivePath("b", before="a")), ["chat", "b", "a", 2**53 - 1, 500, 1000, ""]),
    ],
    ids=["tombstone", "vacuum", "nodes", "page", "page before a node"],
)
def test_graph_maintenance_calls_pass_every_key_of_the_session(call, args):
    assert (list(call.keys), list(call.args)) == (SESSION, args)


@pytest.mark.parametrize(("parent", "sent"), [(None, ""), ("old", "old")])
@pytest.mark.parametrize(("own_ttl_ms", "own"), [(None, ""), (0, 0), (7, 7)])
def test_meta_passes_session_and_catalogue_keys_in_every_mode(parent, sent, own_ttl_ms, own):
    meta = SessionMeta("chat", "name", "now", "m", parent_session_id=parent)
    for known, mode in ((None, "save"), (b"", "compare"), (b"record", "compare")):
        call = commands.lifecycle.meta_call(KEYS, meta, known, "alice", 9, StoreOptions(), own_ttl_ms=own_ttl_ms)
        assert (list(call.keys), call.args[:2]) == (SESSION + CATALOGUE + OWNED, ["chat", mode])
        assert call.args[3:] == [sent, 9, own, 60_000, known or b"", "", "alice"]


def test_gc_passes_a_key_for_every_ref():
    call = commands.maintenance.gc_call(KEYS.shard, "scope", ["1" * 64, "2" * 64])
    blobs = [f"{PREFIX}blob:{'1' * 64}", f"{PREFIX}blob:{'2' * 64}"]
    assert list(call.keys) == [f"{PREFIX}orphans", *CATALOGUE, *blobs]
    assert list(call.args) == ["scope", "1" * 64, "2" * 64]


def test_touch_and_delete_pass_the_key_of_each_blob_of_the_head_once():
    refs = ComponentRefs.of(("1" * 64, "2" * 64, "1" * 64), "hph")
    blob = f"{PREFIX}blob:{'1' * 64}"
    packed = b"h" + bytes.fromhex("1" * 64) + b"p" + bytes.fromhex("2" * 64) + b"h" + bytes.fromhex("1" * 64)
    documents = [f"{PREFIX}documents:chat", f"{PREFIX}names:chat"]
    touch = commands.lifecycle.touch_call(KEYS, refs, "alice", 9, OPTIONS, own_ttl_ms=0)
    assert (list(touch.keys), touch.args) == (
        [*SESSION, *CATALOGUE, *OWNED, *documents, blob],
        ["chat", packed, 9, 0, 60_000, "", "alice"],
    )
    delete = commands.lifecycle.delete_call(KEYS, refs, "alice", "1f", OPTIONS)
    streams, events = f"{PREFIX}streams:chat", f"{PREFIX}events:4:chat:gen"
    assert list(delete.keys) == [*SESSION, *CATALOGUE, f"{PREFIX}orphans", *OWNED, streams, *documents, blob]
    assert delete.args[:3] == ["chat", packed, 60_000]
    delete = commands.lifecycle.delete_call(KEYS, refs, "alice", "1f", OPTIONS, generations=["gen"])
    assert list(delete.keys[-5:]) == [streams, *documents, blob, events]
    assert delete.args[-1] == "gen"


def test_prune_passes_six_keys_for_every_entry():
    child = [key.replace(":chat", ":child") for key in SESSION]
    for owner, catalogue in (("", CATALOGUE), ("alice", OWNED)):
        call = commands.catalogue.prune_call(KEYS.shard, owner, LAYOUT, [b"chat", b"child\xffchat"])
        assert list(call.keys) == [*catalogue, *SESSION, *child]
        assert list(call.args[1:]) == [owner, b"chat", b"child\xffchat"]


def test_a_node_reply_with_another_node_is_corrupt():
    record = prepared(commit(None, append("a"))).records[0]
    call = commands.maintenance.nodes_call(KEYS, ["a"])
    assert commands.maintenance.nodes_reply(call, KEYS, ["a"], [b"nodes", b"chat", 0, record]) == [node("a")]
    with pytest.raises(Corrupt):
        commands.maintenance.nodes_reply(call, KEYS, ["b"], [b"nodes", b"chat", 0, record])
    with pytest.raises(Corrupt):
        commands.maintenance.nodes_reply(call, KEYS, ["a"], [b"nodes", b"chat", 0, record[:-1]])


def test_replies_of_an_empty_store_decode_to_no_session():
    assert at_once(commands.reads.full_reply(KEYS, [{}, [], [], {}, 0, 0])) is None
    assert commands.paths.path_plan(KEYS, None, [{}, [], [], {}, 0, 0], strict=True) is None
    assert commands.reads.head_reply(KEYS, {}, 0, 0, 0, 0, 0) is None
    assert commands.reads.meta_reply(KEYS, [[None, None, None, None], 0, 0, 0, 0, 0]) is None


def test_session_data_without_a_head_is_reported_as_an_eviction():
    for replies in (
        [{}, [b"x"], [], {}, 0, 0],
        [{}, [], [b"0"], {}, 0, 0],
        [{}, [], [], {b"p": b"x"}, 0, 0],
        [{}, [], [], {}, 1, 0],
        [{}, [], [], {}, 0, 1],
    ):
        with pytest.raises(SessionEvicted):
            at_once(commands.reads.full_reply(KEYS, replies))
        with pytest.raises(SessionEvicted):
            commands.paths.path_plan(KEYS, None, replies, strict=True)
    for sizes in ([1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]):
        with pytest.raises(SessionEvicted):
            commands.reads.head_reply(KEYS, {}, *sizes)
        with pytest.raises(SessionEvicted):
            commands.reads.meta_reply(KEYS, [[None, None, None, None], *sizes])


# Invalid commits


@pytest.mark.parametrize(
    "change",
    [
        {"session_id": ""},
        {"session_id": None},
        {"commit_id": ""},
        {"commit_id": 5},
        {"builds_on": ""},
        {"expected_head_revision": True},
        {"expected_head_revision": 1.0},
        {"expected_head_revision": "1"},
        {"graph": None},
        {"graph": SessionGraph()},
        {"graph": Append(None)},
        {"graph": Append("ab")},
        {"graph": Append([None])},
        {"graph": Unchanged("")},
        {"checkpoint": None},
        {"checkpoint": HydratedSessionCheckpoint(execution_state="text")},
        {"checkpoint": HydratedSessionCheckpoint(tool_state={})},
        {"checkpoint": HydratedSessionCheckpoint(tool_state_ref="A" * 64)},
        {"config": None},
        {"usage_deltas": None},
        {"usage_deltas": "abc"},
        {"usage_deltas": [None]},
        {"usage_deltas": [TokenLedgerEntry("s", "m", TokenUsage(1.5))]},
        {"usage_deltas": [TokenLedgerEntry("s", "m", TokenUsage(True))]},
        {"usage_deltas": [TokenLedgerEntry("", None, TokenUsage(1))]},
    ],
    ids=str,
)
def test_a_commit_with_an_invalid_field_is_refused_as_an_invalid_record(change):
    with pytest.raises(InvalidRecord):
        prepared(replace(MADE, **change))
