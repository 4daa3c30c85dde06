"""The ledger is the exact sum of all successful commits, each counted once."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from lash_redis import (
    ActivePath,
    Append,
    Corrupt,
    FullGraph,
    HeadRevisionConflict,
    InvalidRecord,
    SessionMeta,
    StoreError,
    TokenLedgerEntry,
    TokenUsage,
    Unchanged,
)
from tests.support.breaking import Lua, Python, broken_by
from tests.support.builders import append, commit, key_of, replace_full, used

MAX, MIN = 2**63 - 1, -(2**63)


@broken_by(
    Lua("replace", "add64(known[counter], added[counter])", "added[counter]"),
    Lua("replace", "for row = 0, rows - 1 do\n    local text", "for row = 0, rows - 2 do\n    local text"),
    Lua("replace", "local found = string.find(receipts, tag, 1, true)", "local found = nil"),
    Lua("replace", "(expected == '' or expected == actual) and ", ""),
)
async def test_the_ledger_is_the_sum_of_commits_after_any_sequence_of_operations(open_cache):
    dice = random.Random(2024)
    store = open_cache().session("chat")
    model: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    revision, last = 0, None
    for step in range(60):
        match dice.choice(
            ["commit"] * 6 + ["stale", "retry", "replace", "tombstone", "vacuum", "gc", "meta", "reopen"]
        ):
            case "retry" if last is not None:
                assert (await store.commit_runtime_state(last)).replayed
            case "stale":
                stale = commit(revision + 1, replace_full("stale"), usage_deltas=[used(input=1_000)])
                with pytest.raises(HeadRevisionConflict):
                    await store.commit_runtime_state(stale)
            case "replace":
                last = commit(revision, replace_full(f"r{step}"))
                await store.commit_runtime_state(last)
                revision += 1
            case "tombstone":
                await store.tombstone_nodes([f"n{step - 1}"])
            case "vacuum":
                await store.vacuum()
            case "gc":
                await store.gc_unreachable()
            case "meta":
                await store.save_session_meta(SessionMeta("chat", "name", "now", "m"))
            case "reopen":
                store = open_cache().session("chat")
            case _:
                rows = [
                    used(
                        dice.choice("abc"),
                        dice.choice("xy"),
                        input=dice.randint(-9, 99),
                        output=dice.randint(0, 2**57),
                        cached=dice.randint(-(2**54), 2**54),
                        reasoning=dice.choice([0, 0, 1, 2**53]),
                    )
                    for _ in range(dice.randint(1, 4))
                ]  # fmt: skip
                last = commit(revision, replace_full(f"n{step}"), usage_deltas=rows)
                await store.commit_runtime_state(last)
                revision += 1
                for row in rows:
                    usage = row.usage
                    counters = (
                        usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.reasoning_tokens,
                    )  # fmt: skip
                    known = model[row.source, row.model]
                    model[row.source, row.model] = [a + b for a, b in zip(known, counters, strict=True)]
        read = await store.load_session(FullGraph())
        ledger = () if read is None else tuple(read.token_ledger)
        assert ledger == tuple(TokenLedgerEntry(*key, TokenUsage(*sums)) for key, sums in model.items())
    assert revision > 20


@broken_by(
    Python("models:TokenUsage.is_zero", lambda _: lambda self: self.total() == 0, "ignores cached tokens"),
    Python(
        "models:TokenUsage.is_zero",
        lambda _: lambda self: self.input_tokens + self.output_tokens == 0,
        "ignores cached and reasoning tokens",
    ),
)
async def test_a_row_with_any_nonzero_counter_is_stored(store):
    rows = [
        used("cached", cached=5),
        used("reasoning", reasoning=7),
        used("input", input=1),
        used("output", output=2),
        used("balanced", input=3, output=-3),
    ]
    await store.commit_runtime_state(commit(usage_deltas=rows))
    assert list((await store.load_session(FullGraph())).token_ledger) == rows


@broken_by(Python("models:TokenUsage.is_zero", lambda _: lambda self: False, "is never true"))
async def test_a_row_of_zeros_is_not_stored(store):
    await store.commit_runtime_state(commit(usage_deltas=[used("nothing"), used("something", input=1)]))
    assert (await store.load_head()).token_ledger == (used("something", input=1),)


async def test_counters_may_decrease_below_zero(store):
    for revision, amount in enumerate((5, -7, -(2**62))):
        await store.commit_runtime_state(commit(revision, usage_deltas=[used(input=amount)]))
    assert (await store.load_head()).token_ledger == (used(input=-2 - 2**62),)


async def test_a_row_whose_sum_becomes_zero_is_kept(store):
    await store.commit_runtime_state(commit(usage_deltas=[used(input=5)]))
    await store.commit_runtime_state(commit(1, usage_deltas=[used(input=-5)]))
    assert (await store.load_head()).token_ledger == (used(),)


async def test_rows_of_a_commit_with_the_same_source_and_model_are_merged(store):
    rows = [used(input=1, cached=10), used("other", input=100), used(input=2, output=5)]
    await store.commit_runtime_state(commit(usage_deltas=rows))
    assert (await store.load_head()).token_ledger == (used(input=3, output=5, cached=10), used("other", input=100))


@broken_by(
    Lua(
        "commit",
        "order, a, b, c, d = known[skipped + row + 1], usage,",
        "order, a, b, c, d = known[skipped + row + 1], 99 - usage,",
    ),
    Lua("commit", "order, a + e,", "order, e + 0,"),
)
async def test_the_ledger_is_in_order_of_first_appearance(store):
    appearances = [["m", "z"], ["a", "m"], ["z", "b", "a"]]
    for revision, sources in enumerate(appearances):
        rows = [used(source, input=1) for source in sources]
        await store.commit_runtime_state(commit(revision, usage_deltas=rows))
    for ledger in ((await store.load_head()).token_ledger, (await store.load_session(ActivePath())).token_ledger):
        assert [(row.source, row.usage.input_tokens) for row in ledger] == [("m", 2), ("z", 2), ("a", 2), ("b", 1)]


async def test_rows_whose_source_and_model_join_to_the_same_text_are_distinct(store):
    rows = [used("a", "bc", input=1), used("ab", "c", input=2), used("", "abc", input=3), used("a\0", "b", input=4)]
    rows += [used("a", "\0b", input=5), used("é", "\n", input=6)]
    await store.commit_runtime_state(commit(usage_deltas=rows))
    assert list((await store.load_head()).token_ledger) == rows


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (2**53, 1),
        (2**53 + 1, 2**53 + 1),
        (MAX - 1, 1),
        (MAX, 0),
        (MAX, -1),
        (MAX, MIN),
        (MIN, 0),
        (MIN + 1, -1),
        (MIN, MAX),
        (-(2**53), -1),
        (-(2**53) - 1, 2),
        (999_999_999, 1),
        (999_999_999, 999_999_999),
        (10**18 - 1, 1),
        (-(10**18), 1),
        (10**9, -(10**18)),
    ],
)
async def test_sums_are_exact_for_64_bit_integers(old, new, store):
    await store.commit_runtime_state(commit(usage_deltas=[used(output=old, reasoning=1)]))
    await store.commit_runtime_state(commit(1, usage_deltas=[used(output=new, reasoning=1)]))
    assert (await store.load_head()).token_ledger == (used(output=old + new, reasoning=2),)


@broken_by(
    Lua("commit", "if #a < 10 and #b < 10 then", "if true then"),
    Lua("commit", "if #a < 10 and #b < 10 and #c < 10", "if #b < 10 and #c < 10"),
)
async def test_a_sum_above_2_to_the_53_is_exact(store):
    await store.commit_runtime_state(commit(usage_deltas=[used(input=2**53)]))
    await store.commit_runtime_state(commit(1, usage_deltas=[used(input=1)]))
    assert (await store.load_head()).token_ledger == (used(input=2**53 + 1),)


@pytest.mark.parametrize("counter", ["input", "output", "cached", "reasoning"])
@pytest.mark.parametrize(("old", "new"), [(MAX, 1), (MIN, -1), (MAX, MAX), (MIN, MIN), (2**62, 2**62)])
@broken_by(
    Lua(
        "commit",
        "if not sum then return nil, counter - 1 end",
        "if not sum then sum = known[counter] end",
    )
)
async def test_the_refusal_of_a_commit_that_overflows_a_counter_names_the_counter(old, new, counter, store, keyspace):
    await store.commit_runtime_state(commit(None, append("a"), usage_deltas=[used("turn", "opus", **{counter: old})]))
    before = await keyspace()
    overflowing = commit(
        1, append("b", parent="a"), usage_deltas=[used("fine", input=1), used("turn", "opus", **{counter: new})]
    )
    with pytest.raises(InvalidRecord) as refused:
        await store.commit_runtime_state(overflowing)
    for part in ("turn", "opus", counter):
        assert part in str(refused.value)
    assert await keyspace() == before


async def test_rows_of_a_commit_whose_sum_overflows_64_bits_are_refused(store, keyspace):
    await store.commit_runtime_state(commit(None, append("a")))
    before = await keyspace()
    with pytest.raises(InvalidRecord, match=r"(?s)turn.*opus.*cached_input_tokens"):
        await store.commit_runtime_state(
            commit(1, Unchanged("a"), usage_deltas=[used("turn", "opus", cached=MAX), used("turn", "opus", cached=1)])
        )
    assert await keyspace() == before


@pytest.mark.parametrize(
    "planted", [b"", b"0", b"0 1 2 3", b"0 1 2 3 x", b"0 1 2 3 4 5", b"x 1 2 3 4", b"0 1 2 3 99999999999999999999999"]
)
async def test_an_unreadable_row_is_an_error_on_access_and_on_commit(planted, store, client, keyspace):
    await store.commit_runtime_state(commit(usage_deltas=[used(input=1)]))
    head = await key_of(client, "head")
    (field,) = [field for field in await client.hkeys(head) if field.startswith(b"u")]
    await client.hset(head, field, planted)
    before = await keyspace()
    read = await store.load_session(FullGraph())
    with pytest.raises(Corrupt):
        _ = read.token_ledger
    with pytest.raises(Corrupt):
        await store.load_head()
    with pytest.raises(StoreError):
        await store.commit_runtime_state(commit(1, usage_deltas=[used(input=1)]))
    assert await keyspace() == before


async def test_a_missing_row_is_corrupt(store, client):
    await store.commit_runtime_state(commit(usage_deltas=[used("a", input=1), used("b", input=1)]))
    head = await key_of(client, "head")
    field = next(field for field in await client.hkeys(head) if field.startswith(b"u"))
    await client.hdel(head, field)
    with pytest.raises(Corrupt):
        await store.load_session(FullGraph())


async def test_every_kind_of_graph_change_keeps_the_usage(store):
    changes = [append("a", "b"), Append((), "a"), Unchanged("b"), replace_full("c"), replace_full()]
    for revision, change in enumerate(changes):
        await store.commit_runtime_state(commit(revision, change, usage_deltas=[used(input=1)]))
    assert (await store.load_head()).token_ledger == (used(input=5),)
