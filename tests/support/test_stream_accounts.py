"""The accounts of streams and inputs find each kind of damage, and nothing where there is none."""

from __future__ import annotations

import pytest

from tests.support.stream_accounts import Followed, InputRow, Produced, StreamRow

WHOLE = Produced(confirmed=3, began_to_finish=True, has_finished=True, state="finished")
KILLED = Produced(confirmed=3, state="lost")


def counts(produced: Produced, *followed: Followed) -> tuple[int, int, int, int]:
    row = StreamRow("", "")
    row.settle(produced, followed)
    return row.lost, row.doubled, row.misplaced, row.mistaken


def test_a_sound_stream_is_no_finding():
    row = StreamRow("", "")
    row.settle(WHOLE, [Followed([0, 1, 2], "finished")] * 2)
    row.settle(KILLED, [Followed([0, 1, 2, 3], "lost")])  # the fourth was stored, and not confirmed
    assert row.is_sound
    assert row.events == 9


@pytest.mark.parametrize(
    ("produced", "followed", "expected"),
    [
        (WHOLE, Followed([0, 2], "finished"), (1, 0, 0, 0)),
        (WHOLE, Followed([0, 1], "finished"), (1, 0, 0, 0)),
        (WHOLE, Followed([0, 1, 1, 2], "finished"), (0, 1, 0, 0)),
        (WHOLE, Followed([0, 2, 1], "finished"), (0, 0, 1, 0)),
        (WHOLE, Followed([0, 1, 2], "lost"), (0, 0, 0, 1)),
        (WHOLE, Followed([0, 1, 2], "StreamGone"), (0, 0, 0, 1)),
        (KILLED, Followed([0, 1, 2], "finished"), (0, 0, 0, 1)),
        (Produced(3, state="finished"), Followed([0, 1, 2], "finished"), (0, 0, 0, 1)),
    ],
)
def test_each_kind_of_damage_is_counted(produced: Produced, followed: Followed, expected: tuple[int, int, int, int]):
    assert counts(produced, followed) == expected


def test_a_producer_that_was_killed_while_it_finished_may_have_finished():
    produced = Produced(3, began_to_finish=True, state="finished")
    assert counts(produced, Followed([0, 1, 2], "finished")) == (0, 0, 0, 0)


def test_inputs_that_are_answered_twice_or_never_are_counted():
    row = InputRow("", "")
    row.settle(["a", "b", "c"], ["b", "a", "b", "unacknowledged"])
    assert (row.inputs, row.twice, row.never, row.is_sound) == (3, 1, 1, False)
    sound = InputRow("", "")
    sound.settle(["a"], ["a"])
    assert sound.is_sound
