"""Plain chats: messages in the OpenAI chat format, on top of the store of one session."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NoReturn

from lash_redis._validate import require_id, require_int, require_type
from lash_redis.errors import InvalidLeaf, InvalidParent, InvalidRecord
from lash_redis.models import (
    ChatMessage,
    DeleteReport,
    EventPayload,
    FullGraph,
    LeaseClaim,
    PendingInput,
    PersistedSessionRead,
    RuntimeCommit,
    SessionNodeRecord,
    SessionUsageReport,
    StreamClaim,
    StreamEvent,
    TokenLedgerEntry,
    Unchanged,
)
from lash_redis.models.chat_messages import canonical_json, check_chat_message, decode_message, encode_message
from lash_redis.models.node import inside, is_transient, new_message_id, timestamp_now
from lash_redis.options import Durability
from lash_redis.protocol.inputs import require_consumed
from lash_redis.protocol.steps import STEP_ITEMS, Steps, at_once
from lash_redis.protocol.stored_nodes import contents_of
from lash_redis.session.appender import Addition, Appender, Tip
from lash_redis.session.namespace import Namespace
from lash_redis.session.path_items import PathItems
from lash_redis.session.store import RedisSessionStore
from lash_redis.session.stream import StreamWriter
from lash_redis.transport.turns import in_turns


class Chat:
    """A chat. `SessionCache.chat` makes it, without I/O; the chat need not exist.

    Messages are dicts in the OpenAI chat format. Each is stored as one node, whose id is the id of the message. It is
    returned equal to what was given, with its `id`. The chat is a session like any other, and `store` has everything
    else, such as leases. Messages of other runtimes are returned as far as the chat format can express them.

    A handle is cheap, so an application can make one for every request. Tasks can share a handle.
    """

    def __init__(self, store: RedisSessionStore, namespace: Namespace) -> None:
        self._store = store
        self._appender = Appender(store, namespace, _is_same_message)
        self._path = PathItems(store, _messages_of)

    @property
    def session_id(self) -> str:
        return self._store.session_id

    @property
    def store(self) -> RedisSessionStore:
        """The store of the chat's session."""
        return self._store

    def __repr__(self) -> str:
        return f"Chat({self.session_id!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Chat holds connections and cannot be pickled: pass the session id to the other process, and call "
            "chat(session_id) on a cache of its own"
        )

    # Reads

    async def messages(self, limit: int | None = None, before: str | None = None) -> list[ChatMessage]:
        """Return the messages of the active path, oldest first; an empty list if the chat does not exist.

        `limit` returns the last messages only, and `before` those before the message with that id. A page costs the
        same in a chat of any length: one round trip, two if the path has branched near its end, and further ones if
        some of its nodes are not messages. All messages take one round trip if there are at most 100. Else they take
        two, or three if the chat has branches. One more if this process does not know the tool state.

        Raises:
            InvalidRecord: `limit` is below 1, or the chat exists and `before` is not the id of a message of its path.
            InvalidLeaf, Corrupt, SessionEvicted: as `RedisSessionStore.load_session` does.
        """
        if limit is not None:
            require_int("limit", limit, 1)
        read, messages = await self._path.load(limit, before)
        if before is None:
            self._appender.tip = Tip.of(read)  # the next append takes one round trip
        return messages

    async def branches(self) -> list[str]:
        """Return the id of the last message of every branch, in the order in which these messages were added.

        A chat without branches has one. `rewind` continues at one of them. It reads the whole graph in one round trip,
        two if this process does not know the tool state.

        Raises:
            Corrupt, SessionEvicted: as `RedisSessionStore.load_session` does.
        """
        read = await self._store.load_session(FullGraph())
        if read is None:
            return []
        return await in_turns(_branches_of(read))

    async def usage(self) -> SessionUsageReport:
        """Return the sums of the token usage that was appended, by source and model. One round trip.

        Raises:
            Corrupt, SessionEvicted: as `RedisSessionStore.load_head` does.
        """
        head = await self._store.load_head()
        return SessionUsageReport.from_ledger(() if head is None else head.token_ledger)

    # Writes

    async def append(
        self,
        *messages: Mapping[str, object],
        usage: Sequence[TokenLedgerEntry] = (),
        after: str | None = None,
        lease: LeaseClaim | None = None,
        consumes: Sequence[str] = (),
        finishes: StreamClaim | None = None,
    ) -> list[ChatMessage]:
        """Append messages behind what others have appended, all or none, and return them with their ids.

        A message keeps its `id` if it has one. Messages with ids are stored once, however often and by whichever worker
        they are sent: give messages ids if you may send them again. Token usage is added to the ledger in the same
        commit. `after` continues from the message with that id, as a branch, instead of from the last message. With a
        `lease` of `store.acquire_lease`, the messages are appended only if the caller still holds it. `consumes` are
        the ids of pending inputs that the messages answer: they are consumed with the append, or both are refused.
        `finishes` is the `out` of `async with chat.stream(...) as out`: the append ends the stream in its own round
        trip, so that a follower that sees the end finds the messages. If the append is refused, the stream continues.

        One round trip if no other handle has written since this one read or wrote the chat, else two or three. Appends
        of one process follow one another in the order of their calls. If other processes append at the same time, the
        append is repeated behind them, for at most `StoreOptions.call_timeout` seconds, or 8 if that is None. A chat
        that does not exist begins with these messages.

        Raises:
            InvalidRecord: a message or an id is invalid, or no message has the id `after`; the error names it. Also if
                the last message was tombstoned: `rewind` to a live one.
            CommitTooLarge: the messages are over a limit of `StoreOptions`.
            NodeIdCollision: a message with that id and other content exists.
            LeaseLost: the lease is no longer held; nothing was appended.
            InputNotPending: one of `consumes` is not pending; nothing was appended.
            SessionDeleted: the chat was deleted.
            SessionGone: the chat expired after this handle read or wrote it. The next append begins a new one.
            HeadRevisionConflict: other workers appended first until the time was over.
            Corrupt, SessionEvicted, BackendError: as `RedisSessionStore.commit_runtime_state` does.
            OutcomeUnknown: the reply was lost. Messages with ids can be appended again. Load the others by `messages`
                to see whether they are stored.
        """
        if after is not None:
            require_id("after", after)
            if not messages:
                raise InvalidRecord("after", "expected messages that continue from it, got none")
        _check_usage(usage)
        require_consumed("consumes", consumes)
        if not (messages or usage or consumes):
            return []
        # A short append is converted before it waits, so it contains the messages as they are now.
        nodes = at_once(_new_nodes(messages)) if len(messages) <= STEP_ITEMS else None
        async with self._appender.turn():
            if nodes is None:
                nodes = await in_turns(_new_nodes(messages))
            try:
                parent_of = (lambda tip: tip.leaf) if after is None else (lambda _: after)
                await self._appender.add(Addition(nodes, parent_of, usage, lease, consumes, finishes))
            except InvalidParent as error:
                if after is not None:
                    raise InvalidRecord("after", f"expected the id of a live message, got {after!r}") from error
                reason = f"the last message, {error.parent_node_id!r}, was tombstoned; rewind to a live message first"
                raise InvalidRecord("after", reason) from error
        return await in_turns(_messages_of_new(nodes))

    async def enqueue_input(
        self, message: Mapping[str, object], *, durability: Durability | None = None
    ) -> PendingInput:
        """Store a message that arrives while a turn is running, until an `append` with `consumes` consumes it.

        Its `id`, made here if missing, is the id of the input. The input's item is the message with its id, so that
        `append(item, answer, consumes=[input_id])` adds it to the chat. `RedisSessionStore.enqueue_input` has the rest.

        Raises:
            InvalidRecord: the message or its id is invalid; the error names it.
            Everything else that `RedisSessionStore.enqueue_input` raises.
        """
        checked = check_chat_message(message, "message")
        message_id = new_message_id() if checked.get("id") is None else require_id("message.id", checked["id"])
        item = {**checked, "id": message_id}
        return await self._store.enqueue_input(item, message_id, durability=durability)

    async def pending_inputs(self) -> list[PendingInput]:
        """Load the inputs that were not consumed, the first one first. See `RedisSessionStore.pending_inputs`."""
        return await self._store.pending_inputs()

    async def edit(
        self, message_id: str, message: Mapping[str, object], *, lease: LeaseClaim | None = None
    ) -> ChatMessage:
        """Add another version of a message as a new branch next to it, move the head to it, and return it with its id.

        The new message gets an id of its own; an id in `message` is ignored. The earlier version and what follows it
        stay, as a branch. Two round trips if this handle knows the head, else three.

        Raises:
            InvalidRecord: no live message has the id `message_id`, or `message` is invalid.
            Everything else that `append` raises.
        """
        node = await self._store.load_node(require_id("message_id", message_id))
        if node is None or node.message() is None:
            await self._store.require_owner()
            raise _unknown_message(message_id)
        new = _new_node(check_chat_message(message, "message"), new_message_id(), timestamp_now())
        try:
            async with self._appender.turn():
                await self._appender.add(Addition([new], lambda _: node.parent_node_id, lease=lease))
        except InvalidParent as error:  # the chat expired, or the message before was tombstoned
            raise _unknown_message(message_id) from error
        return message_of_new(new)

    async def rewind(self, message_id: str, *, lease: LeaseClaim | None = None) -> None:
        """Move the head to a message on any branch; the next message follows it. No message is removed.

        One round trip if this handle knows the head, else two; three if another worker has written since.

        Raises:
            InvalidRecord: no live message has the id.
            OwnerMismatch, SessionDeleted: the chat is another's, or was deleted.
            BackendError: other workers wrote first until the time was over.
            OutcomeUnknown: the reply was lost; call again.
        """
        graph = Unchanged(require_id("message_id", message_id))
        commit = RuntimeCommit(self.session_id, None, graph=graph, lease=lease)
        try:
            result = await self._store.commit_runtime_state(commit)
        except InvalidLeaf as error:
            raise _unknown_message(message_id) from error
        self._appender.tip = Tip.after(result, message_id)

    async def set_title(self, title: str) -> None:
        """Rename the chat. Two round trips. `RedisSessionStore.set_title` lists the errors."""
        await self._store.set_title(title)

    async def delete(self, *, reusable: bool = False, durability: Durability | None = None) -> DeleteReport:
        """Delete the chat. See `SessionCache.delete`."""
        report = await self._store.delete(reusable=reusable, durability=durability)
        self._appender.tip = None
        return report

    # Turns in flight

    def stream(
        self,
        generation_id: str,
        ttl: float = 30.0,
        keep: float = 120.0,
        max_events: int = 2048,
        max_bytes: int = 16 * 1024 * 1024,
    ) -> StreamWriter:
        """Return the producer of an answer that others follow while it is made. See `RedisSessionStore.stream`."""
        return self._store.stream(generation_id, ttl, keep, max_events, max_bytes)

    def follow(
        self, generation_id: str, after: str | None = None, wait: float = 0.0
    ) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of an answer, those that were sent and then those that are sent, until it is finished.

        See `RedisSessionStore.follow`.
        """
        return self._store.follow(generation_id, after, wait)


def _is_same_message(stored: SessionNodeRecord, added: SessionNodeRecord) -> bool:
    return canonical_json(message_of_node(stored)) == canonical_json(message_of_new(added))


def message_of_node(node: SessionNodeRecord) -> ChatMessage | None:
    """Return the message of a node with its id; None if the node is not a message, or a transient one."""
    return _message_of(node.node_id, node.event())


def _message_of(node_id: str, event: Any) -> ChatMessage | None:
    record = event.get("Conversation") if type(event) is dict else None
    if type(record) is not dict:  # the event has another form, or types of the caller's own
        record = inside(event, "Conversation")
    if record is None or (record.get("origin") is not None and is_transient(record)):
        return None
    message = decode_message(record, "content")
    message["id"] = node_id
    return message


def _messages_of(read: PersistedSessionRead) -> Steps[list[ChatMessage]]:
    """Return the messages of a read; each node is a step."""
    messages = []
    for node_id, plugin_type, content in contents_of(read.graph.nodes):
        message = _message_of(node_id, content) if plugin_type is None else None
        if message is not None:
            messages.append(message)
        yield
    return messages


def _branches_of(read: PersistedSessionRead) -> Steps[list[str]]:
    """Return the ids of the messages that no message follows; each node is a step."""
    above: dict[str, str | None] = {}
    """The last message at or above each node. Parents precede their children in the log."""
    last: dict[str, None] = {}
    for node in read.graph.nodes:
        parent = None if node.parent_node_id is None else above.get(node.parent_node_id)
        is_message = node.message() is not None
        above[node.node_id] = node.node_id if is_message else parent
        if is_message:
            last[node.node_id] = None
            if parent is not None:
                last.pop(parent, None)
        yield
    return list(last)


def message_of_new(node: SessionNodeRecord) -> ChatMessage:
    message = message_of_node(node)
    assert message is not None
    return message


def _messages_of_new(nodes: Sequence[SessionNodeRecord]) -> Steps[list[ChatMessage]]:
    messages = []
    for node in nodes:
        messages.append(message_of_new(node))
        yield
    return messages


def _unknown_message(message_id: str) -> InvalidRecord:
    return InvalidRecord("message_id", f"expected the id of a live message, got {message_id!r}")


def _new_nodes(messages: Sequence[Any]) -> Steps[list[SessionNodeRecord]]:
    """Return a node for each message, without parents; each message is a step."""
    now = timestamp_now()
    nodes: dict[str, SessionNodeRecord] = {}
    for at, given in enumerate(messages):
        where = f"messages[{at}]"
        message = check_chat_message(given, where)
        message_id = new_message_id() if message.get("id") is None else require_id(f"{where}.id", message["id"])
        if message_id in nodes:
            raise InvalidRecord(f"{where}.id", f"expected ids that differ, got {message_id!r} twice")
        nodes[message_id] = _new_node(message, message_id, now)
        yield
    return list(nodes.values())


def _new_node(message: ChatMessage, message_id: str, now: str) -> SessionNodeRecord:
    """Return a node for a message that was checked. An id in the message is left out."""
    content = {key: value for key, value in message.items() if key != "id"}
    event = EventPayload({"Conversation": encode_message(content, message_id, "content")})
    return SessionNodeRecord(message_id, None, now, event)


def _check_usage(usage: Sequence[TokenLedgerEntry]) -> None:
    if not isinstance(usage, Sequence) or isinstance(usage, str):
        raise InvalidRecord("usage", f"expected a sequence of TokenLedgerEntry, got {type(usage).__name__}")
    for at, entry in enumerate(usage):
        require_type(f"usage[{at}]", entry, TokenLedgerEntry)
