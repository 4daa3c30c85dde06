"""The CRC-32 of stored records: by ISA-L where isal is installed (the extra `fast`), else by zlib.

Both give the same value.
"""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
