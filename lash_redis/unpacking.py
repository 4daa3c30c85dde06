"""How MessagePack is read: by msgspec where it is installed (the extra `fast`), in half the time, else by msgpack.

Both give the same values for bytes that this package wrote. What either says of other bytes is among `UNREADABLE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgpack

try:
    import msgspec
except ImportError:
    unpack: Callable[[bytes], Any] = msgpack.unpackb
    _FOREIGN: tuple[type[Exception], ...] = ()
else:
    unpack = msgspec.msgpack.Decoder().decode
    _FOREIGN = (msgspec.MsgspecError, RecursionError)

UNREADABLE: Final = (ValueError, TypeError, msgpack.UnpackException, *_FOREIGN)
"""What unpacking raises for bytes that are no MessagePack, or hold what cannot be a key."""
