"""The Lua scripts, loaded at import: from `lash_redis/lua` if installed, else from `lua/` next to the package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

_INCLUDE = re.compile(r"^--@include (\w+)$", re.MULTILINE)


def lua_directory() -> Path:
    """Return the folder of the scripts: inside the installed package, else next to it."""
    package = Path(__file__).parents[1]
    packed = package / "lua"
    return packed if packed.is_dir() else package.parent / "lua"


@dataclass(frozen=True)
class Script:
    """A script's text with its includes in place, and the SHA-1 by which EVALSHA names it."""

    name: str
    text: str
    sha: str

    @property
    def write_line(self) -> int:
        """The line of `-- WRITE`. A failure above it wrote nothing. Past the end for a script that only reads."""
        above, found, _ = self.text.partition("\n-- WRITE\n")
        return above.count("\n") + (2 if found else 3)


def load(name: str) -> Script:
    """Read a script and insert its includes."""
    directory = lua_directory()
    text = (directory / f"{name}.lua").read_text(encoding="utf-8")
    text = _INCLUDE.sub(lambda match: (directory / "include" / f"{match[1]}.lua").read_text(encoding="utf-8"), text)
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


ACQUIRE = load("acquire")
COMMIT = load("commit")
DELETE = load("delete")
DOCUMENT_READ = load("document_read")
DOCUMENT_WRITE = load("document_write")
ENQUEUE = load("enqueue")
GC = load("gc")
MARK = load("mark")
META = load("meta")
NODE = load("node")
PAGE = load("page")
PRUNE = load("prune")
PUT_BLOB = load("put_blob")
READ = load("read")
RECOUNT = load("recount")
REFRESH = load("refresh")
RELEASE = load("release")
RELIST = load("relist")
RENEW = load("renew")
REPLACE = load("replace")
STREAM_OPEN = load("stream_open")
STREAM_READ = load("stream_read")
STREAM_SEND = load("stream_send")
STREAM_STOP = load("stream_stop")
TOMBSTONE = load("tombstone")
TOUCH = load("touch")
VACUUM = load("vacuum")


def every() -> list[Script]:
    """Return all scripts above."""
    return [each for each in globals().values() if isinstance(each, Script)]
