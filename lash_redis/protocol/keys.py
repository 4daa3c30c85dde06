"""The names of all keys of the store. No other module builds one.

A key is `lash2:{<namespace>:<shard>}:<family>[:<id>]`. The number is the layout version. The braces are the hash tag of
Redis Cluster, so all keys of a shard lie in one slot and one script can use them all. The family precedes the id, so no
session id can imitate another key or change the slot.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

LAYOUT = 2
SLOTS = 16384


def slot(tag: str) -> int:
    """Return the cluster slot of a hash tag: CRC-16/XMODEM of its bytes, modulo 16384 (Redis Cluster specification)."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def slot_of(key: str | bytes) -> int:
    """Return the cluster slot of a key: that of its hash tag, the text between the first `{` and the next `}`."""
    text = key if isinstance(key, bytes) else key.encode()
    begin = text.find(b"{") + 1
    end = text.find(b"}", begin)
    return crc_hqx(text[begin:end] if 0 < begin < end else text, 0) % SLOTS


@dataclass(frozen=True)
class Layout:
    """A namespace and its number of shards, which the first write to the namespace fixes."""

    namespace: str
    shards: int

    @cached_property
    def _tags(self) -> dict[int, str]:
        return {}

    @property
    def key(self) -> str:
        """string: the layout version and the shard count.

        The key has the same name in every layout version. So a client refuses a namespace of another version.
        """
        return f"lash1:layout:{self.namespace}"

    @property
    def value(self) -> str:
        """The value of `key`: the layout version and the shard count."""
        return f"layout={LAYOUT} shards={self.shards}"

    def shard_of(self, session_id: str) -> int:
        return crc32(session_id.encode()) % self.shards

    def tag(self, shard: int) -> str:
        """Return the hash tag of a shard, salted so that its slot lies in the shard's own share of the 16,384 slots.

        Without the salt, CRC-16 would place the shards at random: some cluster nodes would get several of a few shards,
        and others none. Cost: about `shards` CRCs the first time, then a dictionary access.
        """
        tag = self._tags.get(shard)
        if tag is None:
            low, high = shard * SLOTS // self.shards, (shard + 1) * SLOTS // self.shards
            salt = 0
            tag = f"{self.namespace}:{shard}"
            while not low <= slot(tag) < high:
                salt += 1
                tag = f"{self.namespace}:{shard}.{salt}"
            self._tags[shard] = tag
        return tag

    def prefix(self, shard: int) -> str:
        return f"lash2:{{{self.tag(shard)}}}:"

    def session(self, session_id: str, owner: str | None = None) -> SessionKeys:
        return SessionKeys(self.prefix(self.shard_of(session_id)), session_id, owner or "")

    def shard_keys(self, shard: int) -> ShardKeys:
        return ShardKeys(self.prefix(shard))


@dataclass(frozen=True)
class SessionKeys:
    """The keys of one session and of its shard."""

    prefix: str
    session_id: str
    access: str = ""
    """The owner of the session for whom the caller uses these keys; empty for a trusted caller."""

    @cached_property
    def head(self) -> str:
        """hash: the state after the last commit (facts, refs, body), receipts, ledger and meta; or only `deleted`."""
        return f"{self.prefix}head:{self.session_id}"

    @cached_property
    def log(self) -> str:
        """list: the nodes' records in commit order; an element's index is the node's position."""
        return f"{self.prefix}log:{self.session_id}"

    @cached_property
    def nodes(self) -> str:
        """hash: node id → position in the log, followed by `u` for a user's message. `?`: only named as a parent."""
        return f"{self.prefix}nodes:{self.session_id}"

    @cached_property
    def jumps(self) -> str:
        """list: `position:parent position` of every node whose parent is not the node before it, ascending."""
        return f"{self.prefix}jumps:{self.session_id}"

    @cached_property
    def dead(self) -> str:
        """hash: position → node id of tombstones not yet vacuumed."""
        return f"{self.prefix}dead:{self.session_id}"

    @cached_property
    def state(self) -> str:
        """hash: the private components: `p` the plugin snapshot, `x` the execution state."""
        return f"{self.prefix}state:{self.session_id}"

    @cached_property
    def streams(self) -> str:
        """hash: generation → record of its stream; `` (empty) → the owner for whom the first one was opened."""
        return f"{self.prefix}streams:{self.session_id}"

    @cached_property
    def documents(self) -> str:
        """hash: name → content of each document; the name is its kind, one letter, and its key."""
        return f"{self.prefix}documents:{self.session_id}"

    @cached_property
    def names(self) -> str:
        """zset: the names of the documents in the order of their bytes, except those of parts."""
        return f"{self.prefix}names:{self.session_id}"

    def stream(self, generation_id: str) -> StreamKeys:
        return StreamKeys(self, generation_id)

    @cached_property
    def own(self) -> tuple[str, str, str, str, str, str]:
        """The keys that belong to this session alone."""
        return self.head, self.log, self.nodes, self.jumps, self.dead, self.state

    def listed(self, owner: str) -> tuple[str, ...]:
        """Return the session's own keys, and those of the two catalogues that list it: the shard's, and the owner's."""
        shard, owned = self.shard, self.shard.catalogue(owner)
        return (*self.own, shard.sessions, shard.expiries, owned.sessions, owned.expiries)

    def written(self, owner: str) -> tuple[str, ...]:
        """Return the keys that a commit writes, except blobs: the session's own, the shard's, and the owner's."""
        return self._written if owner == self.access else self._written_for(owner)

    @cached_property
    def _written(self) -> tuple[str, ...]:
        return self._written_for(self.access)

    def _written_for(self, owner: str) -> tuple[str, ...]:
        *keys, owned, owned_expiries = self.listed(owner)
        return (*keys, self.shard.orphans, owned, owned_expiries)

    @cached_property
    def shard(self) -> ShardKeys:
        return ShardKeys(self.prefix)

    def blob(self, ref: str) -> str:
        return self.shard.blob(ref)


@dataclass(frozen=True)
class StreamKeys:
    """The keys of one stream, and its channels."""

    session: SessionKeys
    generation_id: str

    @property
    def session_id(self) -> str:
        return self.session.session_id

    @property
    def access(self) -> str:
        return self.session.access

    @property
    def prefix(self) -> str:
        return self.session.prefix

    @property
    def head(self) -> str:
        return self.session.head

    @property
    def streams(self) -> str:
        return self.session.streams

    @cached_property
    def events(self) -> str:
        """list: the newest events. Changes of the stream are published on the channel of the same name.

        An id may contain colons, so the length of the session id in characters precedes it.
        """
        return f"{self.prefix}events:{self._name}"

    @cached_property
    def stops(self) -> str:
        """A channel, and not a key: stop requests are published on it."""
        return f"{self.prefix}stops:{self._name}"

    @cached_property
    def _name(self) -> str:
        return f"{len(self.session_id)}:{self.session_id}:{self.generation_id}"


def generation_of(name: str) -> tuple[str, str]:
    """Return the session id and the generation id in the name of an events key: what follows its family.

    Raises:
        ValueError: the name is that of no such key.
    """
    size, _, ids = name.partition(":")
    length = int(size)
    session_id, colon, generation_id = ids[:length], ids[length : length + 1], ids[length + 1 :]
    if colon != ":" or not session_id or not generation_id or size != str(length):
        raise ValueError(f"expected the length of a session id, the id and a generation id, got {name!r}")
    return session_id, generation_id


@dataclass(frozen=True)
class CatalogueKeys:
    """The keys of a catalogue: that of all sessions of a shard, or that of the sessions of one owner in the shard."""

    prefix: str
    suffix: str = ""
    """A colon and the owner; empty for the shard's catalogue."""

    @cached_property
    def sessions(self) -> str:
        """zset: an entry for each session → the time (ms) of its last commit."""
        return f"{self.prefix}sessions{self.suffix}"

    @cached_property
    def expiries(self) -> str:
        """zset: the entries of sessions that expire → the time (ms) until which they stay in the catalogue."""
        return f"{self.prefix}expiries{self.suffix}"


@dataclass(frozen=True)
class ShardKeys(CatalogueKeys):
    """The keys that the sessions of one shard share, the shard's catalogue included."""

    def catalogue(self, owner: str) -> CatalogueKeys:
        """Return the keys of the catalogue of one owner's sessions in this shard.

        No session has an empty owner. Scripts declare the keys of the empty owner for a session without one, and never
        use them.
        """
        return CatalogueKeys(self.prefix, f":{owner}")

    @cached_property
    def orphans(self) -> str:
        """zset: blobs that no session holds → the time (ms) from which gc may delete them."""
        return f"{self.prefix}orphans"

    def blob(self, ref: str) -> str:
        """hash: `c` the content, `u` the time (ms) until which an upload stays, holders until each time (ms)."""
        return f"{self.prefix}blob:{ref}"


def family_of(key: str) -> str:
    """Return the family of a key: the word after its prefix."""
    return (key.partition("}:")[2] or key.partition(":")[2]).partition(":")[0]
