"""Invalid URLs are refused, credentials reach the server unchanged, and no error shows a part of a password."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio as redis

import lash_redis
from lash_redis import BackendError, InvalidRecord, SessionCache, StoreOptions
from lash_redis.transport import urls
from lash_redis.transport.request import Request
from tests.support.builders import append, commit
from tests.support.scripted import PATIENCE, backend_of
from tests.support.servers import Server

# Valid and invalid URLs


@pytest.mark.parametrize(
    "url",
    [
        "", "redis", "redis:/h", "REDIS://h", " redis://h", "http://h", "redis://h/abc", "redis://h/0/1", "redis://h//0",
        "redis://h/-1", "redis://h/1.0", "redis://h/\u0663", "redis://h?db=abc", "redis://h?db=-1", "redis://h?db=",
        "redis://h/1?db=1", "redis://a,b", "redis://a:1,b:2", "redis://h#x", "redis://h/0#x", "redis://h?a=b#x",
        "redis://h:0", "redis://h:65536", "redis://h:1:2", "redis://h:6379 ", "redis://h:\u0663", "redis://[::1",
        "redis://[::1]x", "redis://h?db", "redis://h?=1", "redis://h?unknown=1", "redis://h?protocol=4", "unix://",
        "unix:///", "unix://run/redis.sock", "unix:///run/redis.sock?unknown=1", "embedded://?x=1", "embedded:///tmp#x",
        "memory://x", "rediss://h?ssl_cert_reqs=maybe", "redis://h?ssl_ca_certs=/x", "redis+cluster://h/1",
        "redis+cluster:///0", "redis+sentinel://h", "redis+sentinel://h/s/x", "redis+sentinel://h/s/0/1",
        "redis+sentinel:///s",
    ],
)  # fmt: skip
def test_an_invalid_url_is_refused_by_connect(url: str) -> None:
    with pytest.raises(InvalidRecord, match=r"^url: ") as caught:
        lash_redis.connect(url)
    assert caught.value.field == "url"


@pytest.mark.parametrize("name", ["socket_timeout", "socket_connect_timeout", "health_check_interval"])
@pytest.mark.parametrize("value", ["-1", "nan", "soon", ""])
def test_an_invalid_duration_in_a_url_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidRecord, match=r"^url: "):
        lash_redis.connect(f"redis://h?{name}={value}")


def test_a_repeated_option_of_a_url_is_refused() -> None:
    with pytest.raises(InvalidRecord, match=r"^url: "):
        lash_redis.connect("redis://h?socket_timeout=1&socket_timeout=2")


@pytest.mark.parametrize("url", [None, 5, b"redis://h", object()])
def test_a_url_that_is_not_a_string_is_refused(url: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"^url: expected a string, got"):
        lash_redis.connect(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://", "redis://h", "redis://h:", "redis://h/", "redis://h/0", "redis://h?db=3", "redis://[::1]:1/2",
        "redis://u@h", "redis://:p@h", "redis://u:@h", "rediss://h?ssl_cert_reqs=none", "unix:///run/redis.sock?db=1",
        "redis+cluster://a:1,b,[::1]:2", "rediss+cluster://u:p@a:1,b:2/0", "redis+sentinel://a,b:1/lash/3",
        "rediss+sentinel://u:p@a,b/lash?sentinel_username=x&sentinel_password=y&ssl_cert_reqs=none",
    ],
)  # fmt: skip
def test_a_valid_url_is_accepted_without_connecting(url: str) -> None:
    lash_redis.connect(url)


# Passwords

FIRST, SECOND = "sEcReT", "tOkEn"
"""The parts of each password. An error must show neither of them, even if a URL is split inside the password."""
PASSWORDS = [
    f"{FIRST}{between}{SECOND}" for between in ["", *"@/?#[]:%&=+,; \\\u2100", "@/", "/?", "?x=", ":1/", "%zz"]
]
PLACES = [
    "{scheme}://user:{password}@127.0.0.1:1{path}",
    "{scheme}://:{password}@127.0.0.1:1{path}",
    "{scheme}://user:12/{password}@127.0.0.1:1{path}",
    "{scheme}://127.0.0.1:1{path}?password={password}",
    "{scheme}://127.0.0.1:1{path}?password={password}&db=x",
    "{scheme}://127.0.0.1:1{path}?sentinel_password={password}",
    "{scheme}://127.0.0.1:1{path}?password={password}&socket_timeout=x",
]
SCHEMES = {"redis": "/0", "redis+cluster": "", "redis+sentinel": "/lash/0", "unix": "/none", "other": ""}


def shown(error: BaseException) -> Iterator[str]:
    """Every text of an error, of its causes and of its contexts."""
    yield "".join(traceback.format_exception(error))
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        yield from (str(each), repr(each), repr(each.args), repr(vars(each)))
        waiting += [each.__cause__, each.__context__]


def expect_hidden(error: BaseException) -> None:
    for text in shown(error):
        assert FIRST.lower() not in text.lower()
        assert SECOND.lower() not in text.lower()


async def first_error(url: str) -> Exception | None:
    """The error of an unusable URL, raised by `connect` or by the first call."""
    try:
        cache = lash_redis.connect(url, options=StoreOptions(call_timeout=0.03))
    except InvalidRecord as error:
        return error
    async with cache:
        assert FIRST not in repr(cache)
        try:
            await cache.session("chat").load_head()
        except BackendError as error:
            return error
    return None


@pytest.mark.parametrize(
    ("options", "is_checked"),
    [("", True), ("?ssl_cert_reqs=required", True), ("?ssl_cert_reqs=none", False), ("?ssl_check_hostname=no", False)],
)
def test_the_host_name_of_a_certificate_is_checked_by_default(options: str, is_checked: bool) -> None:
    """Before version 6, redis-py does not check it by default."""
    made = urls.dialer(urls.read(f"rediss://host{options}"))
    assert made._settings["ssl_check_hostname"] is is_checked


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_no_error_shows_a_part_of_a_password(scheme: str, place: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for password in PASSWORDS:
        for written in {password, quote(password, safe="")}:
            error = await first_error(place.format(scheme=scheme, password=written, path=SCHEMES[scheme]))
            assert error is not None
            expect_hidden(error)
    assert FIRST not in caplog.text
    assert SECOND not in caplog.text


@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_error_of_refused_credentials_does_not_show_the_password(protocol: int, real_server: Server) -> None:
    async with asyncio.timeout(PATIENCE):
        for password in PASSWORDS:
            secret = quote(password, safe="")
            url = real_server.tcp_url.replace("://", f"://nobody:{secret}@")
            async with lash_redis.connect(f"{url}?protocol={protocol}") as cache:
                with pytest.raises(BackendError, match="refused the credentials") as caught:
                    await cache.session("chat").load_head()
            expect_hidden(caught.value)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("password", ["p@ss/w:rd?#%", "100%25", "a+b c", "[::1]", "\u2100\u00e9", "@", ":", "&=;,"])
async def test_escaped_credentials_reach_the_server_unescaped(
    password: str, protocol: int, real_server: Server
) -> None:
    name = "n@me/of:a?user#%"
    admin = real_server.client()
    await admin.execute_command("ACL", "SETUSER", name, "on", f">{password}", "~*", "&*", "+@all")
    try:
        for base in (real_server.tcp_url, real_server.url):
            credentials = f"{quote(name, safe='')}:{quote(password, safe='')}"
            url = f"{base.replace('://', f'://{credentials}@')}?protocol={protocol}"
            async with lash_redis.connect(url) as cache:
                await cache.session("chat").load_head()
                assert await backend_of(cache).send(Request([("ACL", "WHOAMI")])) == [name.encode()]
    finally:
        await admin.execute_command("ACL", "DELUSER", name)


@pytest.mark.parametrize("password", ["p@ss", "@", "p:ss", "[pss", "p@ss:w@rd", "p]ss"])
async def test_a_password_with_at_signs_and_colons_may_be_written_without_escapes(
    password: str, real_server: Server
) -> None:
    admin = real_server.client()
    await admin.execute_command("ACL", "SETUSER", "named", "on", f">{password}", "~*", "&*", "+@all")
    try:
        url = real_server.tcp_url.replace("://", f"://named:{password}@")
        async with lash_redis.connect(url) as cache:
            result = await cache.session("chat").commit_runtime_state(commit(None, append("a")))
            assert result.head_revision == 1
    finally:
        await admin.execute_command("ACL", "DELUSER", "named")


async def test_the_options_of_a_url_apply_to_the_connection(real_server: Server) -> None:
    url = f"{real_server.tcp_url}/3?client_name=na%6De&protocol=2"
    async with lash_redis.connect(url) as cache:
        await cache.session("chat").commit_runtime_state(commit(None, append("a")))
        async with redis.Redis.from_url(real_server.url) as admin:
            (client,) = [each for each in await admin.client_list() if each["name"] == "name"]
            assert client["db"] == "3"
            assert set(await admin.info("keyspace")) == {"db3"}
            await admin.flushall()


# Pickling


@pytest.mark.parametrize("scheme", ["redis://:secret@h", "redis+cluster://:secret@h", "memory://"])
@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda cache: cache, r"SessionCache .* lash_redis\.connect"),
        (lambda cache: cache.session("chat"), r"RedisSessionStore .* session\(session_id\)"),
    ],
    ids=["cache", "store"],
)
def test_pickling_or_copying_a_cache_or_store_is_refused_with_the_alternative(
    made: Callable[[SessionCache], Any], message: str, copied: Callable[[Any], Any], scheme: str
) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        copied(made(lash_redis.connect(scheme)))
    assert "secret" not in str(caught.value)
