"""The proxy counts traffic, and breaks the connection at the chosen command."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest
import redis.asyncio

from lash_redis.embedded import EmbeddedServer
from tests.support.proxy import Action, Proxy, on
from tests.support.servers import Server


@pytest.fixture
async def raw(real_server: Server) -> redis.asyncio.Redis:
    """A client that is connected to the server directly."""
    return real_server.client()


@pytest.fixture
async def proxied(real_server: Server, proxy: Proxy) -> redis.asyncio.Redis:
    """A client that is connected through the proxy and does not retry."""
    client = real_server.client(url=proxy.url, retry=None)
    await client.ping()
    return client


async def test_a_command_is_one_round_trip_of_its_own_bytes(proxy, proxied):
    with proxy.measure() as seen:
        await proxied.set("key", "value")
    assert (seen.commands, seen.round_trips) == (1, 1)
    assert list(seen.log) == [[b"SET", b"key", b"value"]]
    assert seen.bytes_sent == len(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n")
    assert seen.bytes_received == len(b"+OK\r\n")


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_pipeline_of_any_size_is_one_round_trip(transaction, proxy, proxied):
    with proxy.measure() as seen:
        async with proxied.pipeline(transaction=transaction) as pipe:
            for number in range(300):
                pipe.set(f"key:{number}", b"x" * 10_000)
            await pipe.execute()
    assert (seen.commands, seen.round_trips) == (302 if transaction else 300, 1)


async def test_each_of_several_sequential_commands_is_one_round_trip(proxy, proxied):
    with proxy.measure() as seen:
        for _ in range(5):
            await proxied.incr("n")
    assert seen.names() == ["INCRBY"] * 5
    assert seen.round_trips == 5


async def test_traffic_is_counted_per_connection(real_server, proxy, proxied):
    other = real_server.client(url=proxy.url, single_connection_client=True)
    await other.get("key")
    first, second = proxy.connections
    assert "GET" not in first.names()
    assert second.names()[-1] == "GET"


@pytest.mark.parametrize("protocol", [2, 3])
async def test_replies_of_every_type_pass_unchanged(protocol, real_server, proxy, raw):
    client = real_server.client(url=proxy.url, protocol=protocol, single_connection_client=True)
    await raw.hset("hash", mapping={"a": "1", "b": ""})
    await raw.zadd("zset", {"m": 1.5})
    await raw.set("blob", b"\r\n$5\r\n" * 100_000)
    assert await client.hgetall("hash") == {b"a": b"1", b"b": b""}
    assert await client.zscore("zset", "m") == 1.5
    assert await client.get("blob") == b"\r\n$5\r\n" * 100_000
    assert await client.get("absent") is None
    assert await client.lrange("absent", 0, -1) == []
    assert await client.eval("return {1, {2, false}, 'x', {}}", 0) == [1, [2, None], b"x", []]


async def test_subscribers_receive_messages_through_the_proxy(proxy, real_server, raw):
    async with real_server.client(url=proxy.url).pubsub() as channel:
        await channel.subscribe("a", "b")
        for _ in range(2):
            await channel.get_message(timeout=5)
        await raw.publish("b", "news")
        message = await channel.get_message(timeout=5)
    assert message is not None
    assert message["data"] == b"news"


async def test_a_command_whose_reply_is_dropped_is_executed(proxy, proxied, raw):
    proxy.on_command = on(Action.DROP_REPLY, "incrby", nth=2)
    assert await proxied.incr("n") == 1
    with proxy.measure() as seen, pytest.raises(redis.ConnectionError):
        await proxied.incr("n")
    assert await raw.get("n") == b"2"
    assert (seen.commands, seen.round_trips, seen.bytes_received) == (1, 0, 0)
    assert await proxied.incr("n") == 3


async def test_a_command_cut_before_the_server_is_not_executed(proxy, proxied, raw):
    proxy.on_command = on(Action.CUT_BEFORE, "INCRBY")
    with proxy.measure() as seen, pytest.raises(redis.ConnectionError):
        await proxied.incr("n")
    assert await raw.get("n") is None
    assert seen.commands == 0


@pytest.mark.parametrize(("action", "stored"), [(Action.DROP_REPLY, b"3"), (Action.CUT_BEFORE, b"1")])
async def test_a_pipeline_breaks_at_the_chosen_command(action, stored, proxy, proxied, raw):
    proxy.on_command = on(action, "INCRBY", nth=2)
    with pytest.raises(redis.ConnectionError):
        await proxied.pipeline(transaction=False).incr("n").incr("n").incr("n").execute()
    assert await raw.get("n") == stored


async def test_a_transaction_whose_exec_reply_is_dropped_is_fully_applied(proxy, proxied, raw):
    proxy.on_command = on(Action.DROP_REPLY, "EXEC")
    with pytest.raises(redis.ConnectionError):
        await proxied.pipeline(transaction=True).incr("n").incr("n").execute()
    assert await raw.get("n") == b"2"


async def test_a_held_reply_arrives_when_it_is_released(proxy, proxied, raw):
    proxy.on_command = on(Action.HOLD_REPLY, "INCRBY")
    answer = asyncio.ensure_future(proxied.incr("n"))
    async with asyncio.timeout(15):
        while await raw.get("n") is None:
            pass
        assert not answer.done()
        while not answer.done():
            proxy.release()
            await raw.ping()
    assert await answer == 1


async def test_no_other_server_gets_the_port_of_a_refusing_proxy(proxy):
    await proxy.refuse()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", int(proxy.url.rpartition(":")[2])))


async def test_a_refusing_proxy_refuses_new_connections_until_it_accepts(real_server, proxy, proxied):
    newcomer = real_server.client(url=proxy.url, retry=None)
    await proxy.refuse()
    with pytest.raises(redis.ConnectionError, match=r"refused|Connect call failed"):
        await newcomer.ping()
    assert await proxied.ping()
    await proxy.accept()
    assert await newcomer.ping()


async def test_sever_closes_all_open_connections(proxy, proxied):
    assert len(proxy.connections) == 1
    await proxy.sever()
    with suppress(redis.ConnectionError):  # the client may detect the close before or after it sends
        await proxied.ping()
    assert await proxied.ping()
    assert len(proxy.connections) == 2


async def test_an_error_in_on_command_closes_the_connection_and_is_raised_on_exit(real_server):
    def fail(command: list[bytes]) -> Action:
        raise LookupError(command[0])

    async def connect() -> None:
        async with Proxy(real_server.tcp_url) as proxy:
            proxy.on_command = fail
            with pytest.raises(redis.ConnectionError):
                await real_server.client(url=proxy.url, retry=None).ping()

    with pytest.raises(LookupError):
        await connect()


async def test_half_a_reply_is_delivered_and_the_rest_is_lost_with_the_connection(real_server, proxy, raw):
    await raw.set("key", b"x" * 1000)
    proxy.on_command = on(Action.HALF_REPLY, "GET")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
    writer.write(b"GET key\r\n")
    async with asyncio.timeout(15):
        await proxy.holding()
        half = await reader.readexactly(504)
        proxy.release()
        assert await reader.read() == b""
    assert half == b"$1000\r\n" + b"x" * 497
    writer.close()


async def test_lead_to_sends_later_connections_to_another_server(real_server, proxy, proxied):
    await proxied.set("key", "here")
    with EmbeddedServer(port=0) as other:
        await proxy.lead_to(other.url)
        client = real_server.client(url=proxy.url)
        assert await client.get("key") is None
        await client.aclose()
