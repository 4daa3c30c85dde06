"""`lash-redis export --openai`: the active paths of sessions as chat transcripts, which `import --openai` reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lash_redis.cli.bar import progress_bar
from lash_redis.cli.connection import opened
from lash_redis.cli.conversations import Message, message_of
from lash_redis.cli.interrupt import interruptible
from lash_redis.cli.messages import tool_names
from lash_redis.cli.output import counted, no_session, plain, shown_bytes
from lash_redis.cli.transfer import destination, listed_count
from lash_redis.models import FullGraph, PersistedSessionRead
from lash_redis.models.chat_messages import is_chat_message, parts_of
from lash_redis.transfer.exporting import batches, read_batch


@dataclass(slots=True)
class ExportedTranscripts:
    """The counts of an export."""

    transcripts: int = 0
    messages: int = 0
    omitted: int = 0
    """Sessions whose active path has no message."""
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": True,
            "transcript_count": self.transcripts,
            "message_count": self.messages,
            "omitted_count": self.omitted,
            "bytes": self.bytes,
        }


async def export(
    url: str, namespace: str, session_ids: Sequence[str] | None, output: Path | None
) -> ExportedTranscripts:
    """Write one transcript a line to a file or to standard output; of all sessions if no ids are given.

    The file appears when it is complete. After a failure, the lines written so far are in `<file>.part`.

    Raises:
        CommandError: the file cannot be written, or a session with a given id does not exist.
        Corrupt, SessionEvicted: a session cannot be read.
    """
    exported = ExportedTranscripts()
    async with opened(url, namespace) as cache:
        total = len(session_ids) if session_ids is not None else await listed_count(cache)
        # A bar between the lines on one terminal would make both unreadable.
        with progress_bar(hidden=output is None and sys.stdout.isatty()) as bar, destination(output) as file:
            bar.start("sessions", total)
            async for batch in batches(cache, session_ids):
                reads = await read_batch(batch, lambda name: cache.session(name).load_session(FullGraph()))
                for session_id, read in zip(batch, reads, strict=True):
                    if read is None and session_ids is not None:
                        raise no_session(session_id, namespace)
                    transcript = None if read is None else transcript_of(read)
                    if transcript is None:
                        exported.omitted += read is not None
                        continue
                    line = json.dumps(transcript, ensure_ascii=False, separators=(",", ":"))
                    with interruptible():
                        exported.bytes += file.write(line.encode() + b"\n")
                    exported.transcripts += 1
                    exported.messages += len(transcript["messages"])
                bar.advance(len(batch))
    return exported


def transcript_of(read: PersistedSessionRead) -> dict[str, Any] | None:
    """Return the active path of a session as a transcript; None if it has no message.

    Messages that were imported are returned as they were. If all of them are messages of a tree, so is the transcript.
    """
    path = read.graph.active_path()
    records = [record for node in path if (record := node.message()) is not None]
    if not records:
        return None
    messages = _tree_messages(records)
    if messages is None:
        names = tool_names(path)
        messages = [message for record in records for message in _chat_messages(record, names)]
    model = read.config.configured_model
    in_order = [{"role": message["role"], **message} for message in messages]
    return {"id": read.session_id, **({"model": model} if model else {}), "messages": in_order}


def _is_of_tree(record: Mapping[str, Any]) -> bool:
    source = record.get("source")
    return isinstance(source, dict) and "parent_id" in source


def _tree_messages(records: Sequence[Mapping[str, Any]]) -> list[Message] | None:
    """Return the messages of a tree; None if one of the records is not a message of a tree."""
    if not all(map(_is_of_tree, records[1:])) or not any(map(_is_of_tree, records)):
        return None
    messages = [message_of("tree", record) for record in records]
    # The first message of a tree may lack the key `parent_id`.
    return messages if all(isinstance(messages[0].get(key), str) for key in ("id", "text")) else None


def _chat_messages(record: Mapping[str, Any], names: Mapping[str, str]) -> list[Message]:
    """Return a record as chat messages: the imported one, else a message and one for each result of a tool."""
    message = message_of("chat", record)
    if "source" not in record and is_chat_message(record):
        return [message]
    if isinstance(record.get("source"), dict) and is_chat_message(message) and not _is_of_tree(record):
        return [message]
    foreign = {key: value for key, value in record.items() if key != "source"}
    parts = [part for part in parts_of(record) if isinstance(part, dict)]
    results = [part for part in parts if part.get("kind") == "ToolResult"]
    others = [part for part in parts if part.get("kind") != "ToolResult"]
    groups = ([others] if others or not results else []) + [[_named(part, names)] for part in results]
    return [message_of("chat", {**foreign, "parts": group}) for group in groups]


def _named(part: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of a result with the name of the tool, which many runtimes store only with the call."""
    name = names.get(str(part.get("tool_call_id")))
    return {"tool_name": name, **part} if name else dict(part)


def print_exported(exported: ExportedTranscripts, output: Path, screen: Console) -> None:
    what = f"{counted(exported.transcripts, 'transcript')} with {counted(exported.messages, 'message')} in {output}"
    omitted = f"; {counted(exported.omitted, 'session')} without messages left out" if exported.omitted else ""
    screen.print(plain(f"{what} ({shown_bytes(exported.bytes)}){omitted}"), soft_wrap=True)
