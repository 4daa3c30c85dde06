"""The rows of streams and inputs that `make faults` prints, with small counts, and a broken store that they find."""

from __future__ import annotations

import pytest

from tests.support import stream_faults
from tests.support.boundaries import Moment
from tests.support.breaking import Lua
from tests.support.servers import any_real

pytestmark = pytest.mark.slow

AT = {"every": 4}
"""One command in four."""


async def test_a_producer_that_is_killed_or_frozen_at_a_command_leaves_what_was_confirmed_and_a_lost_stream(
    real_server,
):
    killed = await stream_faults.at_each_command_of_a_producer(
        "killed", real_server.kind, real_server.url, stream_faults.kill_producer, **AT
    )
    frozen = await stream_faults.at_each_command_of_a_producer(
        "frozen",
        real_server.kind,
        real_server.url,
        stream_faults.freeze_producer,
        moments=(Moment.EXECUTED,),
        **AT,
    )
    assert killed.is_sound, killed
    assert frozen.is_sound, frozen
    assert (killed.runs, frozen.runs) >= (6, 2)


async def test_a_follower_whose_worker_is_cut_at_a_command_gets_every_event_once(real_server):
    row = await stream_faults.at_each_command_of_a_follower(real_server.kind, real_server.url, **AT)
    assert row.is_sound, row
    assert row.runs >= 6


async def test_inputs_are_answered_once_although_answering_workers_and_the_server_are_killed():
    kind = any_real()
    for kills_workers in (True, False):
        row = await stream_faults.inputs_under(
            "killed", kind, stream_faults.killed_server(kind), times=3, count=2, inputs=40, kills_workers=kills_workers
        )
        assert row.is_sound, row
        assert (row.runs, row.inputs) == (3, 80)


async def test_the_rows_find_a_store_that_stores_an_event_twice(real_server, monkeypatch):
    Lua("stream_send", "local from, size = values + stream.last + 1 - first", "local from, size = values").apply(
        monkeypatch
    )
    row = await stream_faults.at_each_command_of_a_producer(
        "cut", real_server.kind, real_server.url, stream_faults.cut_producer, moments=(Moment.EXECUTED,)
    )
    assert not row.is_sound, row
