"""The names of a thread's documents, by which checkpoints sort as their ids do.

| kind | key | document |
| --- | --- | --- |
| `l` | namespace | pointer to the latest checkpoint of the namespace |
| `c` | namespace, checkpoint id | checkpoint |
| `w` | namespace, checkpoint id, task id, index | pending write |
| `s` | | a random text that each removal of parts replaces |
| `p` | `b` and a hash; or `e`, a log and a number | part: a value of a channel; or one element of a list |

In the keys of the first three kinds, a NUL separates the components. NUL and 0x01 inside of a component are escaped,
so it may have any characters. The key of a part has a fixed length.
"""

from __future__ import annotations

from typing import Final

SWEPT: Final = b"s"


def key(*parts: str) -> bytes:
    return b"\0".join(map(_escaped, parts))


def parts_of(name: bytes) -> list[str]:
    """Return the components of the key in a name."""
    return [_plain(part) for part in name[1:].split(b"\0")]


def pointer(ns: str) -> bytes:
    return b"l" + key(ns)


def checkpoint(ns: str, checkpoint_id: str) -> bytes:
    return b"c" + key(ns, checkpoint_id)


def write(ns: str, checkpoint_id: str, task_id: str, index: int) -> bytes:
    return b"w" + key(ns, checkpoint_id, task_id, str(index))


def blob(digest: bytes) -> bytes:
    return b"pb" + digest


def element(log: bytes, number: int) -> bytes:
    return b"pe" + log + number.to_bytes(4, "big")


def checkpoints_of(ns: str) -> tuple[bytes, bytes]:
    """Return the bounds of the names of a namespace's checkpoints."""
    low = b"c" + key(ns) + b"\0"
    return low, low[:-1] + b"\x01"


def _escaped(part: str) -> bytes:
    return part.encode("utf-8", "surrogatepass").replace(b"\x01", b"\x01\x02").replace(b"\0", b"\x01\x01")


def _plain(part: bytes) -> str:
    return part.replace(b"\x01\x01", b"\0").replace(b"\x01\x02", b"\x01").decode("utf-8", "surrogatepass")
