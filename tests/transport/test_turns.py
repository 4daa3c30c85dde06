"""Large work of one event loop takes turns: one slice in each iteration, and no task waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from lash_redis.protocol.steps import Steps, at_once, chunks
from lash_redis.transport import turns
from lash_redis.transport.turns import in_turns


class Iterations:
    """Counts the iterations of the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._next()

    def _next(self) -> None:
        self.count += 1
        asyncio.get_running_loop().call_soon(self._next)


def counted(iterations: Iterations, seen: list[int], count: int) -> Steps[int]:
    for _ in range(count):
        seen.append(iterations.count)
        yield
    return count


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes longer than a slice, and no work is short."""
    monkeypatch.setattr(turns, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(turns, "SHORT_SECONDS", 0.0)


async def test_short_work_is_done_at_once_and_in_the_order_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(turns, "SHORT_SECONDS", 60.0)
    iterations, seen, ended = Iterations(), list[int](), list[int]()

    async def call(number: int) -> None:
        await in_turns(counted(iterations, seen, 10))
        ended.append(number)

    await asyncio.gather(*map(call, range(50)))
    assert len(set(seen)) == 1
    assert ended == [*range(50)]


async def test_work_that_fits_into_a_slice_is_done_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SLICE_SECONDS", 60.0)
    monkeypatch.setattr(turns, "SHORT_SECONDS", 0.0)
    iterations, seen = Iterations(), list[int]()
    assert await in_turns(counted(iterations, seen, 50)) == 50
    assert len(set(seen)) == 1


@pytest.mark.parametrize("tasks", [1, 30])
async def test_an_iteration_has_at_most_two_steps_however_many_tasks_work(no_time: None, tasks: int) -> None:
    iterations, seen = Iterations(), list[int]()
    done = await asyncio.gather(*(in_turns(counted(iterations, seen, 10)) for _ in range(tasks)))
    assert done == [10] * tasks
    assert len(seen) == 10 * tasks
    assert max(map(seen.count, seen)) <= 2


async def test_short_work_ends_before_long_work_that_began_earlier(no_time: None) -> None:
    iterations, long = Iterations(), list[int]()
    working = [asyncio.create_task(in_turns(counted(iterations, long, 1_000))) for _ in range(20)]
    await asyncio.sleep(0)
    assert await in_turns(counted(iterations, [], 2)) == 2
    assert len(long) < 20 * 10
    for task in working:
        task.cancel()


async def test_a_cancelled_task_passes_its_turn_on(no_time: None) -> None:
    iterations, seen = Iterations(), list[int]()
    working = [asyncio.create_task(in_turns(counted(iterations, seen, 10))) for _ in range(20)]
    for number in range(40):
        await asyncio.sleep(0)
        working[number % 10].cancel()
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*working, return_exceptions=True)
    assert outcomes[10:] == [10] * 10
    assert await in_turns(counted(iterations, seen, 3)) == 3


async def test_an_error_of_a_step_is_raised_and_the_next_task_goes_on(no_time: None) -> None:
    def failing() -> Steps[None]:
        yield
        raise ValueError("a step failed")

    iterations, seen = Iterations(), list[int]()
    outcomes = await asyncio.gather(in_turns(failing()), in_turns(counted(iterations, seen, 5)), return_exceptions=True)
    assert isinstance(outcomes[0], ValueError)
    assert outcomes[1] == 5


def test_each_event_loop_has_turns_of_its_own(no_time: None) -> None:
    async def work() -> int:
        return await in_turns(counted(Iterations(), [], 5))

    assert [asyncio.run(work()) for _ in range(3)] == [5, 5, 5]


def test_steps_at_once_return_the_result() -> None:
    def steps() -> Steps[str]:
        yield
        yield
        return "done"

    assert at_once(steps()) == "done"
    assert [*chunks(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert [*chunks([], 2)] == []
