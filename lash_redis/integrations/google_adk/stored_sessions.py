"""Find the stored sessions of an owner whose ids have a prefix."""

from __future__ import annotations

from lash_redis.listing import PAGE, Listing
from lash_redis.models import Cursor
from lash_redis.models.catalogue import entry_ids
from lash_redis.session.namespace import Namespace


async def stored_sessions(namespace: Namespace, owner: str, prefix: str) -> dict[str, bytes]:
    """Return the ids of an owner's sessions without the prefix, each with its entry in the catalogue.

    A commit moves its session to the top of the list. So the top is read again until it has no more than one page of
    sessions that moved meanwhile. One round trip for a list of less than a page.
    """
    found: dict[str, bytes] = {}
    known: Cursor | None = None
    while True:
        listing = Listing(namespace, None, None, PAGE, owner=owner)
        newest, count = known, 0
        while entries := await listing.entries(PAGE):
            fresh = [each for each in entries if known is None or each.committed_ms >= known.committed_ms]
            newest = max([each for each in (newest, *fresh) if each is not None], default=None)
            count += len(fresh)
            ids = ((entry_ids(each.entry)[0], each.entry) for each in fresh)
            found |= {name.removeprefix(prefix): entry for name, entry in ids if name.startswith(prefix)}
            if len(fresh) < len(entries):
                break
        if count < PAGE:
            return found
        known = newest
