"""Delete all sessions of one owner, in bounded batches."""

from __future__ import annotations

import asyncio
from typing import Final

from lash_redis.errors import OwnerMismatch, StoreError
from lash_redis.listing import Listing, prune
from lash_redis.models import DeleteOwnedReport, DeleteReport
from lash_redis.models.catalogue import entry_ids
from lash_redis.options import Durability
from lash_redis.session.namespace import Namespace, continuing
from lash_redis.session.store import RedisSessionStore

BATCH: Final = 16
"""Maximum number of sessions that are deleted at the same time."""


async def delete_owned(namespace: Namespace, owner: str, durability: Durability | None) -> DeleteOwnedReport:
    """`SessionCache.delete_owned`."""
    listing = Listing(namespace, owner=owner)
    total = DeleteOwnedReport(durable=None if durability is None else True)
    while entries := [each.entry for each in await listing.entries(BATCH)]:
        async with asyncio.TaskGroup() as tasks:
            deletions = [
                tasks.create_task(_delete(namespace, entry_ids(entry)[0], owner, durability)) for entry in entries
            ]
        outcomes = [deletion.result() for deletion in deletions]
        reports = [outcome for outcome in outcomes if isinstance(outcome, DeleteReport)]
        total = DeleteOwnedReport(
            total.deleted_session_count + sum(report.existed for report in reports),
            total.node_count + sum(report.node_count for report in reports),
            total.released_blob_count + sum(report.released_blob_count for report in reports),
            total.durable and all(report.durable for report in reports if report.existed),
        )
        with continuing(total.deleted_session_count, "sessions were deleted"):
            for outcome in outcomes:
                if isinstance(outcome, StoreError):
                    raise outcome
            stale = [entry for entry, report in zip(entries, reports, strict=True) if not report.existed]
            await prune(namespace, stale, owner)
    return total


async def _delete(
    namespace: Namespace, session_id: str, owner: str, durability: Durability | None
) -> DeleteReport | StoreError:
    """Delete a session. An error is returned, so that the caller counts the other deletions before it raises it."""
    try:
        return await RedisSessionStore(namespace, session_id, owner).delete(durability=durability)
    except OwnerMismatch:  # the entry is of a former session; another owner has started the id again
        return DeleteReport()
    except StoreError as error:
        return error
