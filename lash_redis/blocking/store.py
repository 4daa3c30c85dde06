"""The blocking twin of `session.store`."""

from __future__ import annotations

from lash_redis.blocking.lease import BlockingLease, blocking_lease
from lash_redis.blocking.stream import blocking_writer
from lash_redis.blocking.twins import Twin, call, call_and_wrap, described_by, iterate, make
from lash_redis.session.lease import Lease
from lash_redis.session.store import RedisSessionStore


class BlockingSessionStore(Twin[RedisSessionStore]):
    """The store of one session, with blocking methods. `BlockingSessionCache.session` makes it, without I/O.

    A handle is cheap, so an application can make one for every request. It remembers the head that it saw last: its
    revision, commit, config, checkpoint, component refs and owner. A commit after a load or a commit therefore takes
    one round trip. Any number of handles can share a session, and threads can share a handle.

    A handle with an `owner` uses only the sessions of that owner. Another's session reads as absent, and every write to
    it raises `OwnerMismatch`. A handle without an owner is a trusted caller, and uses every session.
    """

    @property
    def session_id(self) -> str:
        return self._inner.session_id

    @property
    def owner(self) -> str | None:
        """The owner whose sessions the handle uses; None for a trusted caller."""
        return self._inner.owner

    # Reads

    load_session = call(RedisSessionStore.load_session)
    refresh = call(RedisSessionStore.refresh)
    load_head = call(RedisSessionStore.load_head)
    load_checkpoint = call(RedisSessionStore.load_checkpoint)
    load_node = call(RedisSessionStore.load_node)
    load_nodes = call(RedisSessionStore.load_nodes)
    load_session_meta = call(RedisSessionStore.load_session_meta)
    require_owner = call(RedisSessionStore.require_owner)
    watch = iterate(RedisSessionStore.watch)

    # Writes

    commit_runtime_state = call(RedisSessionStore.commit_runtime_state)
    update = call(RedisSessionStore.update)
    save_session_meta = call(RedisSessionStore.save_session_meta)
    set_title = call(RedisSessionStore.set_title)
    touch = call(RedisSessionStore.touch)
    delete = call(RedisSessionStore.delete)
    tombstone_nodes = call(RedisSessionStore.tombstone_nodes)
    vacuum = call(RedisSessionStore.vacuum)
    gc_unreachable = call(RedisSessionStore.gc_unreachable)

    # Pending input

    enqueue_input = call(RedisSessionStore.enqueue_input)
    pending_inputs = call(RedisSessionStore.pending_inputs)

    # Turns in flight

    stream = make(RedisSessionStore.stream, blocking_writer)
    follow = iterate(RedisSessionStore.follow)
    request_stop = call(RedisSessionStore.request_stop)
    load_stream = call(RedisSessionStore.load_stream)
    finish_stream = call(RedisSessionStore.finish_stream)

    # Leases

    acquire_lease = call_and_wrap(RedisSessionStore.acquire_lease, blocking_lease, undo=Lease.release)
    load_lease = call(RedisSessionStore.load_lease)

    @described_by(RedisSessionStore.adopt_lease)
    def adopt_lease(self, lease: BlockingLease) -> BlockingLease:
        return blocking_lease(self._loops, self._inner._leasing.adopt(lease))
