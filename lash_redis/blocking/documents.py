"""The blocking twin of `session.documents`."""

from __future__ import annotations

from lash_redis.blocking.twins import Twin, call
from lash_redis.session.documents import Documents


class BlockingDocuments(Twin[Documents]):
    """The documents of one session, with blocking methods. `BlockingSessionCache.documents` makes it, without I/O.

    A session has either a graph or documents. It is listed, owned, touched and deleted as any other, and its documents
    expire with it. The first write of documents begins the session. Threads can share a handle.
    """

    @property
    def session_id(self) -> str:
        """The id of the session."""
        return self._inner.session_id

    write = call(Documents.write)
    read = call(Documents.read)
    page = call(Documents.page)
    pointed = call(Documents.pointed)
    parts = call(Documents.parts)
    all = call(Documents.all)
    part_names = call(Documents.part_names)
