"""The blocking twin of `chat`."""

from __future__ import annotations

from lash_redis.blocking.store import BlockingSessionStore
from lash_redis.blocking.stream import blocking_writer
from lash_redis.blocking.twins import Twin, call, iterate, make
from lash_redis.chat import Chat


class BlockingChat(Twin[Chat]):
    """A chat, with blocking methods. `BlockingSessionCache.chat` makes it, without I/O; the chat need not exist.

    Messages are dicts in the OpenAI chat format. Each is stored as one node, whose id is the id of the message. It is
    returned equal to what was given, with its `id`. The chat is a session like any other, and `store` has everything
    else, such as leases. Messages of other runtimes are returned as far as the chat format can express them.

    A handle is cheap, so an application can make one for every request. Threads can share a handle.
    """

    @property
    def session_id(self) -> str:
        return self._inner.session_id

    @property
    def store(self) -> BlockingSessionStore:
        """The store of the chat's session."""
        return BlockingSessionStore(self._loops, self._inner.store)

    # Reads

    messages = call(Chat.messages)
    branches = call(Chat.branches)
    usage = call(Chat.usage)

    # Writes

    append = call(Chat.append)
    edit = call(Chat.edit)
    rewind = call(Chat.rewind)
    set_title = call(Chat.set_title)
    delete = call(Chat.delete)

    # Turns in flight

    stream = make(Chat.stream, blocking_writer)
    follow = iterate(Chat.follow)

    # Pending input

    enqueue_input = call(Chat.enqueue_input)
    pending_inputs = call(Chat.pending_inputs)
