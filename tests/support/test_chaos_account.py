"""The account of random work: what it finds and what it accepts, on histories of a few steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.chaos.account import Account, Stored, settle
from tests.support.chaos.checks import Label, Problem
from tests.support.chaos.deed import Deed
from tests.support.chaos.plan import WEIGHTS, owner_of, step_of
from tests.support.chaos.streaming import problems_of
from tests.support.stream_accounts import Followed

KEPT, OPEN = "kept0.0", "open0.0"


def deed(op: str, kind: str = "commit", session: str = KEPT, at: float = 0.0, **more: Any) -> Deed:
    """A step of one node with usage that was acknowledged within a second."""
    has_usage = kind in ("commit", "append", "update", "lease")
    values = {"end": at + 1, "outcome": "done", "has_usage": has_usage, "count": 1}
    return Deed(op, kind, session, at, **{**values, **more})


def stored(*ops: str, session: str = KEPT, nodes: dict[str, Label] | None = None) -> dict[str, Stored | None]:
    """A session with one node and one ledger row for each of these steps."""
    made = {f"{op}.0.0": Label(op, session, 0, 1, True) for op in ops} if nodes is None else nodes
    return {session: Stored(dict.fromkeys(ops, 1), made)}


def kinds(deeds: list[Deed], sessions: dict[str, Stored | None], *, keeps_all: bool = False) -> list[str]:
    return [finding.kind for finding in settle(deeds, sessions, keeps_all=keeps_all).findings]


def test_an_acknowledged_step_that_is_stored_is_no_finding():
    account = settle([deed("a", durable=True), deed("b")], stored("a", "b"), keeps_all=False)
    assert (account.acknowledged, account.durable, account.findings) == (2, 1, [])


@pytest.mark.parametrize(("durable", "kind"), [(True, "durable lost"), (False, "lost"), (None, "lost")])
def test_an_acknowledged_step_that_is_not_stored_is_lost(durable: bool | None, kind: str):
    assert kinds([deed("a", durable=durable)], stored("b")) == [kind]
    assert kinds([deed("a", durable=durable)], {KEPT: None}) == [kind]


def test_a_step_that_was_not_acknowledged_is_never_lost():
    for outcome in ("refused", "failed", "unknown", "nothing"):
        assert kinds([deed("a", outcome=outcome)], {KEPT: None}) == []


def test_a_step_before_an_end_of_a_deletion_is_not_lost():
    commit = deed("a", session=OPEN, at=0, durable=True)
    assert kinds([commit, deed("d", "delete", OPEN, at=5)], {OPEN: None}) == []
    assert kinds([commit, deed("d", "delete", OPEN, at=5, outcome="unknown", unknowns=1)], {OPEN: None}) == []
    assert kinds([commit, deed("d", "delete", OPEN, at=0.5)], {OPEN: None}) == []


def test_a_step_after_a_deletion_or_beside_a_refused_one_is_lost():
    commit = deed("a", session=OPEN, at=5, durable=True)
    assert kinds([deed("d", "delete", OPEN, at=0), commit], {OPEN: None}) == ["durable lost"]
    refused = deed("d", "delete", OPEN, at=6, outcome="failed", error="BackendError")
    assert kinds([commit, refused], {OPEN: None}) == ["durable lost"]


@pytest.mark.parametrize(("durable", "kind"), [(True, "durable undone"), (False, "undone")])
def test_a_deletion_is_undone_if_an_earlier_step_is_stored(durable: bool, kind: str):
    deeds = [deed("a", session=OPEN, at=0), deed("d", "delete", OPEN, at=5, durable=durable)]
    assert kinds(deeds, stored("a", session=OPEN)) == [kind]


def test_a_deletion_is_not_undone_by_a_step_that_began_before_its_end_and_ended_later():
    deeds = [deed("a", session=OPEN, at=0, end=9.0), deed("d", "delete", OPEN, at=5, durable=True)]
    assert kinds(deeds, stored("a", session=OPEN)) == []


@pytest.mark.parametrize(("durable", "kind"), [(True, "durable undone"), (False, "undone")])
def test_a_tombstone_is_undone_if_its_node_can_be_read(durable: bool, kind: str):
    deeds = [deed("a"), deed("t", "tombstone", at=5, hidden=["a.0.0"], durable=durable)]
    assert kinds(deeds, stored("a")) == [kind]
    assert kinds(deeds, stored("a", nodes={})) == []


def test_a_step_of_which_a_node_or_the_usage_is_missing_is_torn():
    two = deed("a", count=2)
    assert kinds([two], stored("a")) == ["torn"]
    assert kinds([deed("a", count=2, outcome="unknown", unknowns=1)], stored("a")) == ["torn"]
    assert kinds([deed("a")], {KEPT: Stored({}, {"a.0.0": Label("a", KEPT, 0, 1, True)})}) == ["torn"]


def test_a_node_that_was_hidden_or_replaced_is_not_missing():
    two = deed("a", session=OPEN, count=2)
    hidden = deed("t", "tombstone", OPEN, at=5, hidden=["a.0.1"])
    replaced = deed("r", "replace", OPEN, at=5, outcome="unknown", unknowns=1)
    assert kinds([two, hidden], stored("a", session=OPEN)) == []
    assert kinds([two, replaced], stored("a", session=OPEN)) == []
    earlier = deed("r", "replace", OPEN, at=-5, outcome="refused", error="SessionGone")
    assert kinds([two, earlier], stored("a", session=OPEN)) == ["torn"]


def test_an_error_after_which_the_step_is_stored_has_lied_unless_an_earlier_call_was_unknown():
    refused = {"outcome": "refused", "error": "HeadRevisionConflict"}
    assert kinds([deed("a", **refused)], stored("a")) == ["lied"]
    assert kinds([deed("a", outcome="failed", error="BackendError")], stored("a")) == ["lied"]
    assert kinds([deed("a", unknowns=1, **refused)], stored("a")) == []
    assert kinds([deed("a", outcome="unknown", error="OutcomeUnknown", unknowns=1)], stored("a")) == []


def test_a_fork_is_lost_if_its_session_is_not_stored():
    fork = deed("f", "fork", made="fork-f")
    assert kinds([fork], {"fork-f": None}) == ["lost"]
    assert kinds([fork], {"fork-f": Stored({}, {})}) == []
    denied = deed("f", "fork", made="fork-f", outcome="failed", error="BackendError")
    assert kinds([denied], {"fork-f": Stored({}, {})}) == ["lied"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [("KeyError", "wrong"), ("CommitIdReused", "refused"), ("OwnerMismatch", "refused"), ("StoreError", "wrong")],
)
def test_an_error_that_no_sound_store_raises_is_a_finding(error: str, outcome: str):
    assert kinds([deed("a", outcome=outcome, error=error)], {KEPT: None}) == ["wrong error"]


def test_damage_that_a_worker_sees_is_a_finding():
    assert kinds([deed("a", "read", outcome="corrupt", error="SessionEvicted")], {KEPT: None}) == ["unreadable"]


def test_errors_depend_on_what_may_happen_to_the_session():
    deleted = {"outcome": "refused", "error": "SessionDeleted"}
    assert kinds([deed("a", session=OPEN, **deleted)], {OPEN: None}) == []
    assert kinds([deed("a", **deleted)], {KEPT: None}) == ["wrong error"]
    gone = deed("a", outcome="refused", error="SessionGone")
    assert kinds([gone], {KEPT: None}) == []
    assert kinds([gone], {KEPT: None}, keeps_all=True) == ["wrong error"]


def test_two_claims_that_held_a_lease_at_once_are_a_finding_on_a_server_that_keeps_all():
    both = [deed("a", "lease", held=(1.0, 2.0)), deed("b", "lease", held=(1.5, 3.0))]
    after = [deed("a", "lease", held=(1.0, 2.0)), deed("b", "lease", held=(2.0, 3.0))]
    assert kinds(both, stored("a", "b"), keeps_all=True) == ["two leases"]
    assert kinds(after, stored("a", "b"), keeps_all=True) == []


def test_what_was_lost_breaks_a_promise_only_if_it_was_durable_or_the_servers_keep_all():
    lost = deed("a")
    assert settle([lost], {KEPT: None}, keeps_all=False).broken == []
    assert len(settle([lost], {KEPT: None}, keeps_all=True).broken) == 1
    assert len(settle([deed("a", durable=True)], {KEPT: None}, keeps_all=False).broken) == 1


def test_problems_of_reads_are_findings():
    account: Account = settle([deed("a", problems=[("doubled", "twice", "a")])], stored("a"), keeps_all=False)
    assert account.counts == {"doubled": 1}


def test_usage_is_counted_again_if_a_replacement_dropped_the_message_before_it_was_sent_again():
    append = deed("a", "append", OPEN, end=9.0, unknowns=1, problems=[("doubled", "twice", "a")])
    replaced = deed("r", "replace", OPEN, at=5)
    account = settle([append, replaced], stored("a", "r", session=OPEN), keeps_all=True)
    assert (account.counts, account.broken) == ({"counted again": 1}, [])
    for deeds in ([append], [append, deed("r", "replace", OPEN, at=20)], [replace(append, unknowns=0), replaced]):
        assert "doubled" in kinds(deeds, stored("a", "r", session=OPEN))
    there = {OPEN: Stored({"a": 2, "r": 1}, {}, [Problem("doubled", "twice", "a")])}
    assert kinds([replace(append, problems=[]), replaced], there) == ["counted again"]


def pending(*ops: str) -> dict[str, Stored | None]:
    """A session that has only the pending inputs of these steps."""
    return {KEPT: Stored({}, {}, pending=ops)}


def test_an_input_that_is_pending_or_answered_once_is_no_finding():
    asked, answer = deed("i", "enqueue"), deed("a", "answer", at=5, has_usage=True, answered=["i"])
    assert kinds([asked], pending("i")) == []
    assert kinds([asked, answer], stored("a")) == []
    unknown = deed("i", "enqueue", outcome="unknown", unknowns=1)
    assert kinds([unknown], {KEPT: None}) == []


def test_an_input_that_is_answered_twice_or_still_pending_after_its_answer_is_a_finding():
    asked = deed("i", "enqueue")
    answers = [deed(op, "answer", at=5, has_usage=True, answered=["i"]) for op in ("a", "b")]
    assert kinds([asked, *answers], stored("a", "b")) == ["answered twice"]
    there = stored("a")[KEPT]
    assert there is not None
    assert kinds([asked, answers[0]], {KEPT: replace(there, pending=["i"])}) == ["answered twice"]


@pytest.mark.parametrize(("durable", "kind"), [(True, "durable lost"), (False, "lost")])
def test_an_acknowledged_input_that_is_neither_pending_nor_answered_is_lost(durable: bool, kind: str):
    assert kinds([deed("i", "enqueue", durable=durable)], {KEPT: None}) == [kind]
    deleted = [deed("i", "enqueue", OPEN), deed("d", "delete", OPEN, at=5)]
    assert kinds(deleted, {OPEN: None}) == []


def test_an_input_that_was_refused_and_is_pending_has_lied():
    assert kinds([deed("i", "enqueue", outcome="failed", error="BackendError")], pending("i")) == ["lied"]


COMPLETE = list(range(10))


@pytest.mark.parametrize(
    ("got", "end", "expected", "found"),
    [
        (COMPLETE, "finished", "finished", []),
        (COMPLETE, "lost", "failed", []),  # the producer could not report its error
        (COMPLETE[1:], "finished", "finished", ["event lost"]),
        ([0, *COMPLETE], "finished", "finished", ["event doubled"]),
        ([1, 0, *COMPLETE[2:]], "finished", "finished", ["event out of order"]),
        (COMPLETE, "finished", "failed", ["end mistaken"]),
        (COMPLETE, "failed", "finished", ["end mistaken"]),
        (COMPLETE, "", "finished", ["end mistaken"]),
        (COMPLETE, "lost", "finished", ["end lost"]),
        (COMPLETE, "StreamGone", "finished", ["end lost"]),
    ],
)
def test_what_a_follower_got_is_compared_with_what_was_sent(got: list[int], end: str, expected: str, found: list[str]):
    step = replace(step_of(1, "w0-0", 0), session=KEPT)
    assert [kind for kind, _ in problems_of(step, 10, expected, Followed(got, end))] == found


def test_a_follower_in_a_session_that_may_be_deleted_may_lose_the_stream():
    step = replace(step_of(1, "w0-0", 0), session=OPEN)
    for end in ("SessionDeleted", "StreamGone"):
        assert problems_of(step, 10, "finished", Followed([0], end)) == []


def test_a_record_of_a_step_survives_its_journal():
    whole = deed("a", hidden=["x"], held=(1.0, 2.0), problems=[("doubled", "a b", "a")], text="some words")
    again = Deed.from_json(whole.to_json())
    assert again.problems == whole.problems
    assert (again.op, again.hidden, again.text, again.end) == ("a", ["x"], "some words", 1.0)
    assert Deed.from_json(Deed("a", "commit", KEPT, 0.0).to_json()).may_be_applied


def test_a_seed_gives_each_actor_the_same_steps():
    steps = [step_of(5, "w0-1", number) for number in range(500)]
    assert steps == [step_of(5, "w0-1", number) for number in range(500)]
    assert steps != [step_of(6, "w0-1", number) for number in range(500)]
    assert {step.kind for step in steps} >= WEIGHTS.keys() - {"title", "create", "watch", "list", "gc", "fork"}


def test_no_step_deletes_or_replaces_a_session_that_is_kept():
    steps = [step_of(seed, "w0-1", number) for seed in range(4) for number in range(500)]
    assert {step.session[:4] for step in steps if step.kind in ("delete", "replace")} == {"open"}
    assert {owner_of(step.session) for step in steps} == {"alice", None}
