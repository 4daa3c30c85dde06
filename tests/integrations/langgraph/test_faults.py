"""Lost replies, killed workers and full servers leave a thread that can be continued."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from langchain_core.messages import HumanMessage

from lash_redis import BackendError, OutcomeUnknown, StoreError
from lash_redis.integrations.langgraph import LashCheckpointSaver
from tests.integrations.langgraph.test_checkpoints import messages
from tests.support import graphs
from tests.support.checkpoints import config, listed, load, put
from tests.support.graphs import shown, thread
from tests.support.proxy import Action, on
from tests.support.sending import sends_once


@pytest.fixture
def open_saver(open_real_cache):
    return lambda: LashCheckpointSaver(open_real_cache())


async def test_a_lost_reply_to_any_command_of_a_turn_changes_nothing(proxy, through_proxy, open_saver):
    for nth in range(1, 9):
        proxy.on_command = on(Action.DROP_REPLY, "EVALSHA", nth)
        graph = graphs.chat().compile(checkpointer=LashCheckpointSaver(through_proxy(retry_max_delay=0.01)))
        await graph.ainvoke({"messages": [HumanMessage("hi")]}, thread(f"thread-{nth}"))
        state = await graphs.chat().compile(checkpointer=open_saver()).aget_state(thread(f"thread-{nth}"))
        assert shown(state.values)["messages"] == ["hi", "echo hi"]
        assert state.next == ()
        assert len(await listed(open_saver(), config(f"thread-{nth}"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("is_executed", [True, False])
async def test_a_worker_killed_at_any_command_leaves_a_thread_that_another_resumes(
    is_executed, proxy, through_proxy, open_saver
):
    """The worker is cut off before the command, or after the server has executed it, and is gone."""
    resumed = 0
    for nth in range(1, 12):
        place = thread(f"thread-{nth}")
        saver = LashCheckpointSaver(through_proxy(call_timeout=0.5))
        proxy.on_command = on(Action.HOLD_REPLY if is_executed else Action.CUT_BEFORE, "EVALSHA", nth)
        graph = graphs.asking().compile(checkpointer=saver)
        run = asyncio.create_task(graph.ainvoke({"messages": [HumanMessage("hi", id="hi")]}, place))
        if is_executed:
            holding = asyncio.create_task(proxy.holding())
            await asyncio.wait([run, holding], return_when=asyncio.FIRST_COMPLETED)
            holding.cancel()
            proxy.on_command = lambda _: Action.CUT_BEFORE  # what its background tasks would still send is lost
            run.cancel()
            proxy.release()
        with suppress(asyncio.CancelledError, StoreError):
            await run
        other = graphs.asking().compile(checkpointer=open_saver())
        state = await other.aget_state(place)
        if "messages" not in state.values and not state.next:
            await other.ainvoke({"messages": [HumanMessage("hi", id="hi")]}, place)
        elif state.next != ("approve",):
            await other.ainvoke(None, place)
            resumed += 1
        state = await other.aget_state(place)
        assert shown(state.values) == {"messages": ["hi", "echo hi"], "seen": ["echo hi"], "answer": None}
        assert state.next == ("approve",)
    assert not is_executed or resumed > 0


async def test_a_put_whose_outcome_is_unknown_can_be_sent_again(proxy, through_proxy, open_saver):
    saver = LashCheckpointSaver(sends_once(through_proxy()))
    at = await put(saver, "1", {"messages": messages(20)})
    proxy.on_command = on(Action.DROP_REPLY, "EVALSHA")
    with pytest.raises(OutcomeUnknown):
        await put(saver, "2", {"messages": messages(22)}, on=at)
    proxy.on_command = lambda _: Action.PASS
    await put(saver, "2", {"messages": messages(22)}, on=at)
    await put(saver, "3", {"messages": messages(24)}, on=config(checkpoint_id="2"))
    assert await listed(open_saver(), config()) == ["3", "2", "1"]
    assert (await load(open_saver())).checkpoint["channel_values"]["messages"] == messages(24)


async def test_a_full_server_refuses_a_checkpoint_as_a_whole(open_saver, full):
    saver = open_saver()
    at = await put(saver, "1", {"messages": messages(20)})
    await full()
    with pytest.raises(BackendError, match="OOM"):
        await put(saver, "2", {"messages": messages(30)}, on=at)
    with pytest.raises(BackendError, match="OOM"):
        await saver.aput_writes(at, [("a", "x" * 5_000)], "task")
    found = await load(open_saver())
    assert found.checkpoint["channel_values"]["messages"] == messages(20)
    assert found.pending_writes == []
    await saver.adelete_thread("thread")
    assert await saver.aget_tuple(config()) is None
