"""The headers of scripts document their keys, arguments and replies, and every server can run the scripts."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from hashlib import sha1

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lash_redis import ActivePath, DocumentWrite, FullGraph, HydratedSessionCheckpoint, SessionMeta
from lash_redis.protocol import scripts
from tests.support.builders import append, commit, key_of, replace_full
from tests.support.servers import require_luacheck

READS = {
    "EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET", "HRANDFIELD", "HSTRLEN", "LINDEX", "LLEN",
    "LRANGE", "PTTL", "TIME", "TYPE", "ZCARD", "ZMSCORE", "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZREVRANGE", "ZREVRANGEBYLEX",
    "ZSCORE",
}  # fmt: skip
"""Commands that a script may call above WRITE. Any other command counts as a write."""

INCLUDES = {path.stem: path.read_text("utf-8") for path in sorted(scripts.lua_directory().glob("include/*.lua"))}
SOURCES = {path.stem: path.read_text("utf-8") for path in sorted(scripts.lua_directory().glob("*.lua"))}
SCRIPTS = {each.name: each for each in vars(scripts).values() if isinstance(each, scripts.Script)}
READ_ONLY = {"document_read", "node", "page", "read", "refresh", "stream_read"}
UNUSED_REPLIES = {
    "delete": {"evicted"},
    "document_read": {"foreign"},
    "release": {"evicted"},
    "renew": {"evicted"},
    "relist": {"foreign"},
    "stream_read": {"foreign"},
}
"""Replies of included functions that a script never returns.

delete removes a torn session, too. release and renew read the head only. The caller of relist is always trusted.
stream_read and document_read reply `absent` instead.
"""

COMMANDS = re.compile(r"call\('([A-Z]+)'")
WRITING = {name for name, text in INCLUDES.items() if set(COMMANDS.findall(text)) - READS}
"""Includes that write. Their text belongs below WRITE."""

EVERY_SCRIPT = pytest.mark.parametrize("name", SOURCES)


@dataclass
class Header:
    """`KEYS   1 head  hash  what`: a section is named in columns 4 to 9, an entry starts in column 11."""

    purpose: str
    keys: list[tuple[int, str]]
    argv: list[tuple[int, str]]
    replies: list[str]
    sections: list[str]


def header_of(source: str) -> Header:
    lines = []
    for line in source.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line)
    header = Header(lines[0][3:], [], [], [], [])
    section = ""
    for line in lines[1:]:
        if len(line) > 3 and line[3] != " ":
            section = line[3:10].strip()
            header.sections.append(section)
        if len(line) <= 10 or line[10] == " ":
            continue
        entry = line[10:]
        numbered = re.match(r"(\d+) (\w+) +(\w+)  ", line[9:].lstrip())
        if section in ("KEYS", "ARGV") and numbered:
            (header.keys if section == "KEYS" else header.argv).append((int(numbered[1]), numbered[2]))
        elif section == "Reply":
            header.replies.append(entry.split()[0])
    return header


def body_of(source: str) -> str:
    """The code, without comments."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("--"))


def naming_of(source: str) -> str:
    """The statements that name KEYS and ARGV: all above CHECK."""
    return source.partition("-- CHECK")[0]


def assignments(source: str) -> dict[str, str]:
    """`local a, b = X, Y` above CHECK as {a: X, b: Y}."""
    found = {}
    for names, values in re.findall(r"^local ([\w, ]+) = (.+)$", naming_of(source), re.MULTILINE):
        left, right = names.split(", "), values.split(", ")
        assert len(left) == len(right), f"{names} = {values}"
        found |= dict(zip(left, right, strict=True))
    return found


def test_every_script_is_loaded_and_every_file_is_a_script():
    assert set(SCRIPTS) == set(SOURCES)


@EVERY_SCRIPT
def test_a_script_is_ascii_without_tabs_or_long_lines(name):
    text = SCRIPTS[name].text
    assert text.isascii()
    assert "\t" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert not re.search(r" +$", text, re.MULTILINE)


@EVERY_SCRIPT
def test_the_header_of_a_script_has_a_purpose_and_five_sections(name):
    header = header_of(SOURCES[name])
    assert re.fullmatch(rf"{name}: .+\.", header.purpose)
    assert header.sections == ["KEYS", "ARGV", "Reply", "Order", "Cost"]


@EVERY_SCRIPT
def test_a_script_has_a_check_part_and_a_write_part(name):
    source = SOURCES[name]
    assert source.count("\n-- CHECK\n") == 1
    assert source.count("\n-- WRITE\n") == (0 if name in READ_ONLY else 1)
    assert source.find("-- CHECK") < source.find("-- WRITE") or name in READ_ONLY


@EVERY_SCRIPT
@pytest.mark.parametrize("table", ["KEYS", "ARGV"])
def test_keys_and_arguments_match_the_header_by_number_and_name(name, table):
    header = header_of(SOURCES[name])
    documented = header.keys if table == "KEYS" else header.argv
    assert [number for number, _ in documented] == list(range(1, len(documented) + 1))
    named = {}
    for local, value in assignments(SOURCES[name]).items():
        indexed = re.search(rf"{table}\[(\d+)\]", value)
        if indexed:
            # `local strict = ARGV[10] == 'strict'` names a result computed from the argument.
            named[int(indexed[1])] = None if "==" in value else local
    variadic = assignments(SOURCES[name]).get(documented[-1][1])
    if variadic == str(documented[-1][0]):
        named[documented[-1][0]] = documented[-1][1]
    assert sorted(named) == [number for number, _ in documented]
    assert {number: local for number, local in documented if named[number] is not None} == {
        number: local for number, local in named.items() if local is not None
    }


@EVERY_SCRIPT
def test_each_key_and_argument_is_indexed_once_and_above_check(name):
    used = re.findall(r"(?:KEYS|ARGV)\[\d+\]", body_of(SOURCES[name]))
    assert sorted(used) == sorted(set(used))
    assert not re.search(r"(?:KEYS|ARGV)\[\d+\]", SOURCES[name].partition("-- CHECK")[2])


def replies_of(source: str) -> set[str]:
    """The first words of the replies in the body and in the included functions."""
    text = body_of(source)
    for include in re.findall(r"^--@include (\w+)$", source, re.MULTILINE):
        text += body_of(INCLUDES[include])
    return set(re.findall(r"(?:return(?: nil,)?|refuse\(session,|=) \{'([a-z]+)', (?!'')", text)) | set(
        re.findall(r"(?:return(?: nil,)?|missing or) \{'([a-z]+)'\}", text)
    )


@EVERY_SCRIPT
def test_every_reply_is_documented_and_every_documented_reply_exists(name):
    documented = header_of(SOURCES[name]).replies
    assert len(documented) == len(set(documented))
    assert set(documented) == replies_of(SOURCES[name]) - UNUSED_REPLIES.get(name, set())


@EVERY_SCRIPT
def test_nothing_is_written_above_write(name):
    """Redis does not undo the writes of a script that fails, so all checks precede the first write."""
    above, _, below = SCRIPTS[name].text.partition("-- WRITE")
    assert set(COMMANDS.findall(above)) <= READS
    assert name in READ_ONLY or set(COMMANDS.findall(below)) - READS
    hidden = re.search(r"call\((?!'|command, key\))", SCRIPTS[name].text)
    assert name == "read" or not hidden, "a command that this test cannot find"  # read runs commands from its arguments


@EVERY_SCRIPT
def test_nothing_is_refused_below_write(name):
    below = SCRIPTS[name].text.partition("-- WRITE")[2]
    assert "pcall" not in below.replace(INCLUDES["announcing"], "")  # a failed PUBLISH is ignored
    assert "refuse(" not in below
    assert "error(" not in below
    own = body_of(SOURCES[name].partition("-- WRITE")[2])
    assert "function" not in own
    assert re.findall(r"^(.*)\breturn\b", own, re.MULTILINE) == [""] * (name not in READ_ONLY)


@EVERY_SCRIPT
def test_writing_includes_follow_write_and_reading_includes_precede_check(name):
    above, _, below = SOURCES[name].partition("-- WRITE\n")
    leading = re.match(r"\n(?:--@include \w+\n)*", below)
    assert set(re.findall(r"^--@include (\w+)$", naming_of(above), re.MULTILINE)) & WRITING == set()
    assert "--@include" not in above.partition("-- CHECK")[2]
    assert set(re.findall(r"--@include (\w+)", leading[0] if leading else "")) <= WRITING
    assert "--@include" not in below[leading.end() if leading else 0 :]


@pytest.mark.parametrize("name", sorted(INCLUDES))
def test_an_include_only_defines_functions_and_all_or_none_of_them_write(name):
    pieces = re.split(r"^local function ", body_of(INCLUDES[name]), flags=re.MULTILINE)
    assert re.fullmatch(r"\s*(?:local [A-Z]+ = '.+'\s*)*", pieces[0])
    for piece in pieces[1:]:
        assert re.fullmatch(r"\w+\(.*\)\n(?:  .*\n)+end\s*", piece)
    functions = {piece.partition("(")[0]: set(COMMANDS.findall(piece)) - READS for piece in pieces[1:]}
    assert all(functions.values()) if name in WRITING else not any(functions.values())


@EVERY_SCRIPT
def test_a_script_uses_no_library_that_some_servers_lack(name):
    assert not re.search(r"\b(?:cmsgpack|struct|bit|cjson|redis\.sha1hex|redis\.setresp|math\.random|loadstring)\b",
                         body_of(SCRIPTS[name].text))  # fmt: skip


@EVERY_SCRIPT
async def test_the_sha_of_a_script_equals_the_sha_that_the_server_computes(name, client):
    script = SCRIPTS[name]
    loaded = await client.script_load(script.text)
    assert (loaded.decode() if isinstance(loaded, bytes) else loaded) == script.sha
    assert script.sha == sha1(script.text.encode()).hexdigest()


async def test_every_script_runs(open_cache, client):
    cache = open_cache(shards=1)
    store = cache.session("chat")
    state = HydratedSessionCheckpoint(execution_state=b"1")
    await store.commit_runtime_state(commit(None, append("a", "b"), checkpoint=state))
    await store.commit_runtime_state(commit(1, append("c", parent="a")))
    await cache.session("replaced").commit_runtime_state(commit(None, replace_full("a"), session_id="replaced"))
    await cache.put_blob(b"bytes")
    await store.load_node("a")
    await store.load_session(ActivePath(before="c"))
    await store.refresh(await store.load_session(FullGraph()))
    await store.tombstone_nodes(["b"])
    await store.vacuum()
    await store.gc_unreachable()
    await store.save_session_meta(SessionMeta("chat", "name", "now", "m"))
    await store.enqueue_input("hello")
    await store.touch()
    lease = await store.acquire_lease("worker")
    await lease.renew()
    await lease.release()
    async with store.stream("gen") as out:
        await out.send("event")
        await store.request_stop("gen")
    assert [event.data async for event in store.follow("gen")] == ["event"]
    await cache.documents("thread").write(DocumentWrite(put={b"ca": b"1"}))
    await cache.documents("thread").read([b"ca"])
    for name in ("chat", "replaced", "thread"):
        await cache.delete(name)
    await cache.session("lost").commit_runtime_state(commit(None, append("a"), session_id="lost"))
    await client.delete(*[await key_of(client, family, "lost") for family in ("head", "log", "nodes")])
    assert [line async for line in cache.sessions()] == []
    a, b, *others = (f"{{slot}}{letter}" for letter in "abcdefghij")
    await client.eval(SCRIPTS["read"].text, 1, a, "", "HGETALL", 1, 0)
    await client.eval(SCRIPTS["mark"].text, 1, a, "chat")
    await client.eval(SCRIPTS["relist"].text, 10, a, b, *others, "chat", "")
    await client.eval(SCRIPTS["recount"].text, 1, a, "scope", 60_000)
    known = await client.script_exists(*(script.sha for script in SCRIPTS.values()))
    assert dict(zip(SCRIPTS, map(bool, known), strict=True)) == dict.fromkeys(SCRIPTS, True)


def shadowing_lines(text: str) -> set[int]:
    """The lines of a script that come from writing includes. Their local names may shadow names above WRITE."""
    lines: set[int] = set()
    for name in WRITING:
        before, found, _ = text.partition(INCLUDES[name])
        if found:
            first = before.count("\n") + 1
            lines |= set(range(first, first + INCLUDES[name].count("\n") + 1))
    return lines


@EVERY_SCRIPT
def test_luacheck_reports_no_warnings(name):
    luacheck = require_luacheck()
    script = SCRIPTS[name]
    # A script need not call every function of its includes.
    shared = re.findall(r"^local function (\w+)", "\n".join(INCLUDES.values()), re.MULTILINE)
    options = [
        "--std",
        "lua51",
        "--read-globals",
        "redis",
        "KEYS",
        "ARGV",
        "--ignore",
        *(f"211/{each}" for each in shared),
    ]
    run = subprocess.run(
        [luacheck, "-", "--no-color", "--codes", "--formatter", "plain", "--max-line-length", "120", *options],
        input=script.text,
        capture_output=True,
        text=True,
        check=False,
    )
    excused = {f"{line}" for line in shadowing_lines(script.text)}
    warnings = [
        line
        for line in run.stdout.splitlines()
        if not ((shadowed := re.match(r"stdin:(\d+):\d+: \(W43[123]\)", line)) and shadowed[1] in excused)
    ]
    assert (warnings, run.stderr) == ([], "")
    assert run.returncode in (0, 1)


# int64


MAX, MIN = 2**63 - 1, -(2**63)
EDGES = [
    0, 1, -1, 10**9 - 1, 10**9, -(10**9), 10**15 - 1, 10**15, -(10**15), 10**18 - 1, 10**18, -(10**18), 2**53 - 1,
    2**53, 2**53 + 1, -(2**53), -(2**53) - 1, 2**62, -(2**62), MAX - 1, MAX, MIN + 1, MIN,
]  # fmt: skip
ADD_ALL = (
    INCLUDES["int64"]
    + """
local sums = {}
for at = 1, #ARGV, 2 do sums[#sums + 1] = add64(ARGV[at], ARGV[at + 1]) or 'out of range' end
return sums
"""
)


async def check_sums(client, pairs):
    sums = await client.eval(ADD_ALL, 0, *(number for pair in pairs for number in pair))
    expected = [str(a + b) if MIN <= a + b <= MAX else "out of range" for a, b in pairs]
    assert [each.decode() for each in sums] == expected


async def test_int64_sums_of_every_pair_of_edge_values_equal_those_of_python(client):
    await check_sums(client, [(a, b) for a in EDGES for b in EDGES])


int64 = st.one_of(st.integers(MIN, MAX), st.sampled_from(EDGES), st.integers(-(10**17), 10**17))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(int64, int64), min_size=1, max_size=200))
@example([(MAX, 0), (MIN, 0), (MAX, MIN), (MIN, MAX)])
async def test_int64_sums_of_arbitrary_numbers_equal_those_of_python(client, pairs):
    await check_sums(client, pairs)
