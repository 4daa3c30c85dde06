"""The published conformance suite of LangGraph passes, unmodified and with every capability."""

from __future__ import annotations

from langgraph.checkpoint.conformance import checkpointer_test, validate

from lash_redis.integrations.langgraph import LashCheckpointSaver

CAPABILITIES = {
    "copy_thread", "delete_for_runs", "delete_thread", "get_tuple", "list", "prune", "put", "put_writes",
}  # fmt: skip


async def test_the_published_suite_passes_with_every_capability(open_cache):
    @checkpointer_test(name="LashCheckpointSaver")
    async def made():
        yield LashCheckpointSaver(open_cache())

    report = await validate(made)
    assert report.conformance_level() == "FULL"
    assert {name for name, result in report.results.items() if result.detected and result.passed} == CAPABILITIES
    assert sum(result.tests_passed for result in report.results.values()) >= 77
