"""Compare what the store acknowledged with what is stored at the end. No I/O."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import inf

from tests.support.chaos.checks import Label, Problem
from tests.support.chaos.deed import READING, STORING, Deed
from tests.support.chaos.plan import is_kept

COUNTED = STORING | {"fork", "tombstone", "delete", "enqueue"}
"""Kinds whose acknowledgement is compared with what is stored."""

EVERYWHERE = frozenset({"BackendError", "OutcomeUnknown"})
ON_A_HEAD = frozenset({"HeadRevisionConflict", "SessionGone", "InvalidParent", "InvalidLeaf"})
IN_A_CHAT = ON_A_HEAD | {"InvalidRecord"}
ERRORS: Mapping[str, Collection[str]] = {
    **dict.fromkeys(("append", "append_bare", "append_after", "edit", "rewind"), IN_A_CHAT),
    **dict.fromkeys(("commit", "commit_any", "commit_seen", "update", "update_since"), ON_A_HEAD),
    "replace": ON_A_HEAD | {"NodesTombstoned"},
    "lease": ON_A_HEAD | {"LeaseBusy", "LeaseLost"},
    "fork": {"SessionGone", "InvalidLeaf", "SessionExists"},
    "path": {"InvalidLeaf"},
    "page": {"InvalidLeaf", "InvalidRecord"},
    "refresh": {"InvalidLeaf"},
    "watch": {"SessionGone"},
    "enqueue": {"InputsFull"},
    "answer": ON_A_HEAD | {"InputNotPending"},
    "stream": {"StreamGone", "StreamFailed"},
}
"""The errors that a kind of step may get from a store that works, next to those of `EVERYWHERE`.

`SessionDeleted` is one of them in a session that may be deleted, and `NodeIdCollision` after an unknown outcome: the
first call stored the message, and another worker hid it.
"""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was acknowledged."""

    kind: str
    session: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.session}: {self.text}"


@dataclass
class Stored:
    """What is stored of one session."""

    ledger: Mapping[str, int]
    """How often each step was counted."""
    nodes: Mapping[str, Label]
    problems: Sequence[Problem] = ()
    """What is wrong with the read."""
    pending: Collection[str] = ()
    """The steps whose inputs are pending."""

    @cached_property
    def places(self) -> Mapping[str, set[int]]:
        """Which nodes of each step are stored."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        for label in self.nodes.values():
            found[label.op].add(label.at)
        return found

    def has(self, op: str) -> bool:
        return op in self.ledger or op in self.places


@dataclass
class Account:
    """The counts of a run."""

    steps: int = 0
    acknowledged: int = 0
    durable: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    keeps_all: bool = False
    """Whether the servers promise to keep every acknowledged write, as one server with an append-only file does."""

    @property
    def counts(self) -> Counter[str]:
        return Counter(finding.kind for finding in self.findings)

    @property
    def broken(self) -> list[Finding]:
        """The findings that break a promise."""
        accepted = {"counted again"} if self.keeps_all else {"counted again", "lost", "undone", "end lost"}
        return [finding for finding in self.findings if finding.kind not in accepted]

    def add(self, kind: str, session: str, text: str) -> None:
        self.findings.append(Finding(kind, session, text))


@dataclass
class _History:
    """The steps of one session, and those that remove something."""

    deeds: list[Deed] = field(default_factory=list)
    deletes: list[Deed] = field(default_factory=list)
    replaces: list[Deed] = field(default_factory=list)
    hides: list[Deed] = field(default_factory=list)

    def was_deleted(self, deed: Deed) -> bool:
        """Whether a deletion may have come after the step."""
        return any(_may_follow(delete, deed) for delete in self.deletes)

    def may_lack(self, deed: Deed, at: int) -> bool:
        """Whether a later step may have removed a node of this step."""
        if any(_may_follow(each, deed) for each in self.replaces):
            return True
        ids = [node_id for each in self.hides for node_id in each.hidden]
        if deed.kind in ("append_bare", "edit"):  # the store made the ids of these nodes, as an m and 32 digits
            return any(node_id.startswith("m") for node_id in ids)
        return any(node_id.startswith(f"{deed.op}.") and node_id.endswith(f".{at}") for node_id in ids)

    def may_count_again(self, op: str) -> bool:
        """Whether a message was dropped after a call whose outcome was unknown, so that the next call stored it again.

        A replacement drops a message, as do a tombstone and a vacuum. Its id is then free.
        """
        hides = [each for each in self.hides if any(node_id.startswith(f"{op}.") for node_id in each.hidden)]
        return any(
            deed.op == op
            and deed.kind in ("append", "append_after")
            and deed.unknowns > 0
            and any(_may_follow(each, deed) and each.begin < deed.end for each in [*self.replaces, *hides])
            for deed in self.deeds
        )


def _may_follow(later: Deed, deed: Deed) -> bool:
    end = later.end if later.is_acknowledged else inf  # an unknown outcome may be decided at any later time
    return later.may_be_applied and end > deed.begin


def settle(deeds: Sequence[Deed], stored: Mapping[str, Stored | None], *, keeps_all: bool) -> Account:
    """Compare the journals of all workers with the sessions that are stored. None: a session does not exist."""
    account = Account(keeps_all=keeps_all)
    histories: defaultdict[str, _History] = defaultdict(_History)
    for deed in deeds:
        history = histories[deed.session]
        history.deeds.append(deed)
        removing = {"delete": history.deletes, "replace": history.replaces, "tombstone": history.hides}
        if deed.kind in removing and deed.may_be_applied:
            removing[deed.kind].append(deed)
    for deed in deeds:
        _count(account, deed)
        for kind, text, op in deed.problems:
            again = kind == "doubled" and histories[deed.session].may_count_again(op)
            account.add("counted again" if again else kind, deed.session, f"{deed.op} {deed.kind}: {text}")
        _check_error(account, deed)
        if deed.kind in STORING:
            _check_stored(account, deed, stored.get(deed.session), histories[deed.session])
        elif deed.kind == "fork":
            _check_fork(account, deed, stored)
        elif deed.kind == "tombstone":
            _check_hidden(account, deed, stored.get(deed.session))
    for session, history in histories.items():
        there = stored.get(session)
        for problem in () if there is None else there.problems:
            again = problem.kind == "doubled" and history.may_count_again(problem.op)
            account.add("counted again" if again else problem.kind, session, problem.text)
        _check_deleted(account, session, history, there)
        _check_inputs(account, session, history, there)
    if keeps_all:
        _check_leases(account, deeds)
    return account


def _count(account: Account, deed: Deed) -> None:
    account.steps += 1
    if deed.is_acknowledged and deed.kind in COUNTED:
        account.acknowledged += 1
        account.durable += deed.durable is True
    if deed.error:
        account.errors[deed.error] += 1


def _check_error(account: Account, deed: Deed) -> None:
    """Report an error that a store that works does not raise here."""
    if not deed.error:
        return
    allowed = {*EVERYWHERE, *ERRORS.get(deed.kind, ())}
    if not is_kept(deed.session) and deed.kind not in READING:
        allowed.add("SessionDeleted")
    if deed.unknowns:
        allowed.add("NodeIdCollision")
    if account.keeps_all and is_kept(deed.session) and deed.kind != "fork":
        allowed -= {"SessionGone", "StreamGone"}
    if deed.error not in allowed:
        kind = "unreadable" if deed.outcome == "corrupt" else "wrong error"
        account.add(kind, deed.session, f"{deed.op} {deed.kind}: {deed.error}: {deed.text}")


def _check_stored(account: Account, deed: Deed, stored: Stored | None, history: _History) -> None:
    if stored is not None and stored.has(deed.op):
        if deed.outcome in ("refused", "failed", "corrupt") and not deed.unknowns:
            account.add("lied", deed.session, f"{deed.op} is stored; its worker got {deed.error}: {deed.text}")
        _check_whole(account, deed, stored, history)
        return
    may_lack_all = not deed.has_usage and all(history.may_lack(deed, at) for at in range(deed.count))
    if deed.is_acknowledged and not history.was_deleted(deed) and not may_lack_all:
        _add_lost(account, deed, f"{deed.op} was acknowledged and is not stored")


def _add_lost(account: Account, deed: Deed, text: str) -> None:
    account.add("durable lost" if deed.durable else "lost", deed.session, text)


def _check_whole(account: Account, deed: Deed, stored: Stored, history: _History) -> None:
    """Report a step of which only a part is stored."""
    there = stored.places.get(deed.op, ())
    lacking = [at for at in range(deed.count) if at not in there and not history.may_lack(deed, at)]
    if lacking:
        account.add("torn", deed.session, f"{deed.op} is stored without its nodes {lacking}")
    if deed.has_usage and deed.op not in stored.ledger:
        account.add("torn", deed.session, f"{deed.op} is stored without its usage")


def _check_fork(account: Account, deed: Deed, stored: Mapping[str, Stored | None]) -> None:
    is_there = stored.get(deed.made) is not None
    if deed.is_acknowledged and not is_there:
        _add_lost(account, deed, f"{deed.op} was acknowledged, and its session {deed.made} is not stored")
    if is_there and deed.outcome in ("refused", "failed") and not deed.unknowns:
        account.add("lied", deed.session, f"{deed.op} made {deed.made}; its worker got {deed.error}: {deed.text}")


def _check_hidden(account: Account, deed: Deed, stored: Stored | None) -> None:
    back = [] if stored is None else [node_id for node_id in deed.hidden if node_id in stored.nodes]
    if deed.is_acknowledged and back:
        _add_undone(account, deed, f"{deed.op} hid {', '.join(back)}, which can be read again")


def _add_undone(account: Account, deed: Deed, text: str) -> None:
    account.add("durable undone" if deed.durable else "undone", deed.session, text)


def _check_deleted(account: Account, session: str, history: _History, stored: Stored | None) -> None:
    """Report deletions after which an earlier step is stored."""
    if stored is None or not history.deletes:
        return
    there = [deed for deed in history.deeds if deed.is_acknowledged and stored.has(deed.op)]
    for delete in history.deletes:
        back = [deed.op for deed in there if deed.end < delete.begin]
        if delete.is_acknowledged and back:
            _add_undone(account, delete, f"{delete.op} deleted the session, which has {', '.join(back)} again")


def _check_inputs(account: Account, session: str, history: _History, stored: Stored | None) -> None:
    """Report inputs that are answered twice, and those that were acknowledged and are neither pending nor answered.

    The ledger keeps the row of each answer, also after a replacement.
    """
    answers = Counter(
        op for deed in history.deeds if stored is not None and stored.has(deed.op) for op in deed.answered
    )
    pending = () if stored is None else stored.pending
    for op in {*answers, *pending}:
        if answers[op] + (op in pending) > 1:
            state = " and is pending" if op in pending else ""
            account.add("answered twice", session, f"the input of {op} is answered by {answers[op]} turns{state}")
    for deed in history.deeds:
        is_there = deed.op in answers or deed.op in pending
        if deed.kind != "enqueue" or history.was_deleted(deed):
            continue
        if deed.is_acknowledged and not is_there:
            _add_lost(account, deed, f"the input of {deed.op} was acknowledged, and is neither pending nor answered")
        elif is_there and deed.outcome in ("refused", "failed") and not deed.unknowns:
            account.add("lied", session, f"the input of {deed.op} is stored; its worker got {deed.error}: {deed.text}")


def _check_leases(account: Account, deeds: Iterable[Deed]) -> None:
    """Report two claims that certainly held one lease at the same time."""
    held: defaultdict[str, list[tuple[Deed, float, float]]] = defaultdict(list)
    for deed in deeds:
        if deed.held is not None:
            held[deed.session].append((deed, *deed.held))
    for session, claims in held.items():
        for (one, since, until), (other, other_since, other_until) in combinations(claims, 2):
            if max(since, other_since) < min(until, other_until):
                account.add("two leases", session, f"{one.op} and {other.op} held the lease at the same time")
