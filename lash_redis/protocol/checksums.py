"""The CRC-32 of stored records, computed by ISA-L if isal is installed (the extra `fast`), else by zlib.

Both return the same value.
"""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
