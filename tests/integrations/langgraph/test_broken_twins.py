"""Each test of `BROKEN` must fail on a checkpointer that is broken on purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lash_redis.integrations.langgraph.conflicts import Claim, Pointer
from tests.integrations.langgraph import test_checkpoints as checkpoints
from tests.integrations.langgraph import test_conflicts as conflicts
from tests.integrations.langgraph import test_deltas as deltas
from tests.integrations.langgraph import test_dual_write as dual_write
from tests.integrations.langgraph import test_importing as importing
from tests.integrations.langgraph import test_maintenance as maintenance
from tests.laws import test_broken_twins as laws
from tests.support.breaking import Breakage, Lua, Python

pytestmark = pytest.mark.slow

server, real_server = laws.server, laws.real_server
saver, open_saver, source, workers = checkpoints.saver, conflicts.open_saver, importing.source, dual_write.workers

PACKAGE = "integrations.langgraph"


def never_conflicts(_: Any) -> Callable[[Claim, Pointer | None], tuple[Pointer, str]]:
    return lambda claim, current: (Pointer(claim.checkpoint_id, claim.checkpoint_id), claim.checkpoint_id)


def forgets(**changes: Any) -> Callable[[Any], Any]:
    """A claim whose run did not remember this."""

    def make(decide: Any) -> Any:
        def broken(claim: Claim, current: Pointer | None) -> Any:
            fields = {name: getattr(claim, name) for name in ("checkpoint_id", "parent", "run", "begins")}
            return decide(Claim(**{**fields, **changes}), current)

        return broken

    return make


def by_id_alone(decide: Any) -> Any:
    def broken(claim: Claim, current: Pointer | None) -> Any:
        decided = decide(claim, current)
        if isinstance(decided, tuple) and current is not None and claim.checkpoint_id < current.latest:
            return current, None
        return decided

    return broken


def without_previous(encode: Any) -> Any:
    return lambda typed, previous, cache, session_id, **more: encode(typed, None, cache, session_id, **more)


def expects_nothing(store_parts: Any) -> Any:
    async def broken(self: Any, parts: dict[bytes, bytes]) -> dict[bytes, bytes | bool]:
        await store_parts(self, parts)
        return {}

    return broken


def keeps_the_latest_alone(choose: Any) -> Any:
    def broken(thread: Any, serde: Any) -> Any:
        latest = {(ns, max(found for each, found in thread.checkpoints if each == ns)) for ns in thread.pointers}
        return choose(thread, serde) & latest

    return broken


def names_the_parent_alone(_: Any) -> Any:
    async def broken(self: Any, ns: str, parent_id: str | None) -> Any:
        return self._config(ns, parent_id)

    return broken


def adds_to_any_thread(run: Any) -> Any:
    async def broken(self: Any) -> bool:
        for place in sorted(await self._places(self._source) - await self._places(self._target)):
            await self._store(place)
        return True

    return broken


def expects_no_checkpoint(_: Any) -> Any:
    async def broken(self: Any, ns: str, checkpoint_id: str) -> None:
        return None

    return broken


def stores_in_the_new_one(_: Any) -> Any:
    async def broken(self: Any, *args: Any) -> Any:
        return await self.new.aput(*args)

    return broken


BROKEN: list[tuple[Callable[..., Awaitable[None]], Breakage]] = [
    (
        conflicts.test_the_second_of_two_runs_on_one_checkpoint_is_refused,
        Python(f"{PACKAGE}.conflicts:Claim.decide", never_conflicts, "never conflicts"),
    ),
    (
        conflicts.test_of_many_concurrent_runs_exactly_one_continues,
        Lua("document_write", "if #unlike > 3 then return unlike end", ""),
    ),
    (
        conflicts.test_a_run_that_is_overtaken_between_two_puts_is_refused,
        Python(f"{PACKAGE}.conflicts:Claim.decide", forgets(run=None), "forgets its run"),
    ),
    (
        conflicts.test_only_one_of_two_runs_begins_a_thread,
        Python(f"{PACKAGE}.conflicts:Claim.decide", forgets(begins=False), "forgets that the thread was empty"),
    ),
    (
        conflicts.test_a_writer_whose_clock_is_behind_does_not_lose_its_turn,
        Python(f"{PACKAGE}.conflicts:Claim.decide", by_id_alone, "takes the highest id for the latest"),
    ),
    (
        conflicts.test_a_deleted_thread_is_usable_at_once_and_takes_no_late_writes,
        Lua(
            "document_write", "is_like = (call('HEXISTS', documents, name) == 1) == (expects == '+')", "is_like = true"
        ),
    ),
    (
        checkpoints.test_a_list_that_grows_stores_its_new_elements_only,
        Python(f"{PACKAGE}.writing:encode", without_previous, "stores the whole list"),
    ),
    (
        checkpoints.test_branches_that_grow_one_list_do_not_mix,
        Lua("document_write", "call('HGET', documents, name) == content end", "true end"),
    ),
    (
        checkpoints.test_pending_writes_are_in_the_order_in_which_a_run_applies_them,
        Python(f"{PACKAGE}.reading:writes_sort_key", lambda _: lambda path, task, index: (task, index), "by task id"),
    ),
    (
        checkpoints.test_a_stored_write_stays_and_a_special_one_is_replaced,
        Lua("document_write", "if had and only_new then return true end", ""),
    ),
    (
        deltas.test_pruning_keeps_what_delta_channels_are_rebuilt_from,
        Python(f"{PACKAGE}.maintenance:latest_and_what_it_needs", keeps_the_latest_alone, "keeps no ancestor"),
    ),
    (
        maintenance.test_a_part_that_is_used_again_while_its_thread_is_pruned_stays,
        Lua("document_write", "revision ~= '' and tonumber(revision) ~= account.revision", "false"),
    ),
    (
        maintenance.test_parts_that_are_removed_before_their_checkpoint_is_stored_return,
        Python(f"{PACKAGE}.writing:ThreadWriter._store_parts", expects_nothing, "does not expect that they stay"),
    ),
    (
        importing.test_a_thread_that_is_written_to_on_the_target_meanwhile_is_reported_and_keeps_its_turn,
        Python(f"{PACKAGE}.importing:_ThreadImport.run", adds_to_any_thread, "adds to any thread"),
    ),
    (
        importing.test_branches_are_stored_though_another_branch_is_the_latest,
        Python(f"{PACKAGE}.importing:_ThreadImport._parent", names_the_parent_alone, "names the parent alone"),
    ),
    (
        importing.test_a_thread_that_was_continued_on_both_sides_is_refused,
        Python(f"{PACKAGE}.importing:_ThreadImport.run", adds_to_any_thread, "adds to any thread"),
    ),
    (
        conflicts.test_writes_of_a_process_that_has_not_seen_a_deleted_thread_are_refused,
        Python(f"{PACKAGE}.writing:ThreadWriter._checkpoint_of_the_run", expects_no_checkpoint, "expects nothing"),
    ),
    (
        dual_write.test_of_two_runs_on_one_thread_one_is_refused_whatever_they_read,
        Python(f"{PACKAGE}.dual_write:_recognised", lambda _: lambda found, stored: found, "recognises no run"),
    ),
    (
        dual_write.test_every_turn_of_a_rolling_change_is_kept,
        Python(f"{PACKAGE}.dual_write:DualWriteSaver.aput", stores_in_the_new_one, "stores in the new saver alone"),
    ),
    (
        importing.test_pending_writes_keep_their_order_and_special_ones_their_place,
        Python(f"{PACKAGE}.importing:_writes", lambda _: lambda found: {}, "stores no pending writes"),
    ),
]

numbers: Counter[str] = Counter()
for check, breakage in BROKEN:
    numbers[check.__name__] += 1
    globals()[f"{check.__name__}__broken_{numbers[check.__name__]}"] = laws.broken_twin(check, breakage)
del check, breakage
