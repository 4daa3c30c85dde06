"""`lash-redis show`: one session, as it is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lash_redis._validate import require_id
from lash_redis.cache import SessionCache
from lash_redis.cli.connection import Connection
from lash_redis.cli.graph_drawing import graph_lines, label_of
from lash_redis.cli.graph_sessions import require_no_documents
from lash_redis.cli.messages import message_lines, message_texts, tool_names
from lash_redis.cli.output import counted, no_session, plain, print_table, shown_bytes
from lash_redis.models import (
    HydratedSessionCheckpoint,
    LeaseInfo,
    PendingInput,
    PersistedSessionRead,
    SessionUsageReport,
    StreamInfo,
)
from lash_redis.protocol import commands
from lash_redis.protocol.leases import decode_lease
from lash_redis.session.reader import Reader

MAX_ITEM = 200
"""The number of characters of a pending input that are printed. Its JSON document has all of it."""
_COMPONENTS = ("tool_state", "plugin_snapshot", "execution_state")


@dataclass(frozen=True, slots=True)
class Shown:
    """A session as read, with its expiry, its lease and the sizes of its components."""

    read: PersistedSessionRead
    nodes_in_log: int
    expires_in_ms: int | None
    lease: LeaseInfo | None
    lease_ends_in: float
    """Seconds; negative if the lease has expired."""
    owner: str | None
    """The user or tenant to whom the session belongs; None if it has no owner."""
    component_bytes: Mapping[str, int]
    pending_inputs: Sequence[PendingInput]
    streams: Sequence[StreamInfo] = ()
    """The turns in flight, and those that ended a short time ago."""

    def to_json(self, *, messages: bool) -> dict[str, Any]:
        read, held = self.read, _held(self.read)
        active = {node.node_id for node in read.graph.active_path()}
        names = tool_names(read.graph.nodes)
        document: dict[str, Any] = {
            "session_id": read.session_id,
            "owner": self.owner,
            "head_revision": read.head_revision,
            "commit_id": read.commit_id,
            "leaf_node_id": read.graph.leaf_node_id,
            "config": read.config.to_json(),
            "nodes": {"live": len(read.graph.nodes), "total": self.nodes_in_log, "active": len(active)},
            "expires_in_ms": self.expires_in_ms,
            "lease": self.lease and {**self.lease.to_json(), "ends_in_s": self.lease_ends_in},
            "pending_inputs": [pending.to_json() for pending in self.pending_inputs],
            "streams": [stream.to_json() for stream in self.streams],
            "checkpoint_ref": read.checkpoint_ref,
            "turn_state": held.turn_state.to_json(),
            "components": {
                name: {"ref": getattr(held, f"{name}_ref"), "bytes": self.component_bytes.get(name)}
                for name in _COMPONENTS
            },
            "usage": SessionUsageReport.from_ledger(read.token_ledger).to_json(),
            "graph": [
                {
                    "node_id": node.node_id,
                    "parent_node_id": node.parent_node_id,
                    "timestamp": node.timestamp,
                    "label": label_of(node, names),
                    "active": node.node_id in active,
                }
                for node in read.graph.nodes
            ],
        }
        if messages:
            document["messages"] = message_texts(read.graph.active_path())
        return document


def _held(read: PersistedSessionRead) -> HydratedSessionCheckpoint:
    return read.checkpoint or HydratedSessionCheckpoint()


async def load(url: str, namespace: str, session_id: str) -> Shown:
    """Read a session.

    Raises:
        CommandError: the session does not exist.
    """
    source = Connection(url)
    try:
        cache = SessionCache(source, namespace, options=await source.options_of(namespace))
        keys = cache.layout.session(require_id("session_id", session_id))
        found = await Reader(cache.shared, keys).snapshot()
        if found is None:
            await require_no_documents(cache, session_id)
            raise no_session(session_id, namespace)
        read = found.read()
        head = found.stored.head
        _, (seconds, micros) = await source.ask(("EXISTS", keys.head), ("TIME",))
        now = int(seconds) + int(micros) / 1e6
        lease = decode_lease(head.fields.get(b"lease"), head.keys.head)
        pending = await cache.session(session_id).pending_inputs()
        ends_in = 0.0 if lease is None else lease.deadline - now
        expires = max(0, round(head.facts.deadline - now * 1000)) if head.facts.deadline else None
        bodies = found.components
        refs = {name: getattr(_held(read), f"{name}_ref") for name in _COMPONENTS}
        sizes = {name: len(bodies[ref]) for name, ref in refs.items() if ref in bodies}
        owner = head.owner or None
        replies = await cache.shared.read(commands.stream_audit.list_read(keys), atomic=True)
        streams = commands.stream_audit.list_reply(keys, *replies)
        return Shown(read, head.facts.length, expires, lease, ends_in, owner, sizes, pending, streams)
    finally:
        await source.close()


def print_session(shown: Shown, screen: Console, *, messages: bool) -> None:
    screen.print(plain(shown.read.session_id, "bold"), soft_wrap=True)
    for name, value in _head(shown):
        screen.print(Text(name.ljust(12), "dim").append_text(plain(value)), soft_wrap=True)
    screen.print()
    for line in graph_lines(shown.read, screen.width):
        screen.print(line, soft_wrap=True)
    if shown.read.token_ledger:
        screen.print()
        print_table(_usage(shown.read), screen)
    _print_components(shown, screen)
    _print_inputs(shown, screen)
    if messages:
        screen.print()
        screen.rule("active path", style="dim")
        for message in message_texts(shown.read.graph.active_path()):
            screen.print(message_lines(message))


def _head(shown: Shown) -> list[tuple[str, str]]:
    read = shown.read
    config = read.config
    turn = _held(read).turn_state
    settings = [config.configured_model, config.model_variant, config.provider_id, config.execution_mode]
    if config.context_window:
        settings.append(f"{config.context_window:,} tokens of context")
    if config.standard_context_approach:
        settings.append(str(config.standard_context_approach.get("kind")))
    return [
        ("owner", shown.owner or "none"),
        ("revision", str(read.head_revision)),
        ("commit", read.commit_id or "not known"),
        ("leaf", read.graph.leaf_node_id or "none"),
        ("nodes", f"{len(read.graph.nodes)} live, {shown.nodes_in_log} in the log"),
        ("turn", f"{turn.turn_index}, mode {turn.mode_turn_options.mode_id}"),
        ("config", " · ".join(filter(None, settings)) or "empty"),
        ("checkpoint", read.checkpoint_ref or "none"),
        ("expires", "never" if shown.expires_in_ms is None else f"in {_duration(shown.expires_in_ms)}"),
        ("lease", _lease(shown)),
        ("inputs", f"{len(shown.pending_inputs)} pending"),
        *(("stream", _stream(stream)) for stream in shown.streams),
    ]


def _stream(stream: StreamInfo) -> str:
    dropped = f", {stream.dropped_count:,} of them dropped" if stream.dropped_count else ""
    stop = ", stop requested" if stream.stop_requested else ""
    return f"{stream.generation_id}, {stream.state}, {counted(stream.event_count, 'event')}{dropped}{stop}"


def _lease(shown: Shown) -> str:
    if shown.lease is None:
        return "free"
    ends = f"expires in {_duration(round(shown.lease_ends_in * 1000))}" if shown.lease_ends_in > 0 else "expired"
    return f"{shown.lease.owner}, generation {shown.lease.generation}, {ends}"


def _duration(ms: int) -> str:
    seconds = ms / 1000
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _usage(read: PersistedSessionRead) -> Table:
    table = Table(
        title="tokens", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    table.add_column("source", header_style="dim")
    table.add_column("model", header_style="dim")
    columns = ("input", "output", "cached", "reasoning", "total")
    for column in columns:
        table.add_column(column, justify="right", header_style="dim")
    report = SessionUsageReport.from_ledger(read.token_ledger)
    rows = [(plain(row.source), plain(row.model), row.usage, "") for row in report.by_source_model]
    if len(rows) > 1:
        rows.append((plain("all"), plain(""), report.usage, "bold"))
    for source, model, usage, style in rows:
        counts = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.reasoning_tokens,
            usage.total_tokens,
        )
        table.add_row(source, model, *(f"{count:,}" for count in counts), style=style)
    return table


def _print_components(shown: Shown, screen: Console) -> None:
    """Print each component that the session has, and its ref on a line of its own; nothing if it has none."""
    held = _held(shown.read)
    tools, plugins = held.tool_state, held.plugin_snapshot
    holds = {
        "tool_state": tools and f"{len(tools.tools)} tools, generation {tools.generation}",
        "plugin_snapshot": plugins
        and ", ".join(f"{name} at {entry.meta.revision}" for name, entry in plugins.plugins.items()),
    }
    refs = {name: ref for name in _COMPONENTS if (ref := getattr(held, f"{name}_ref"))}
    if refs:
        screen.print()
        screen.print(Text("components", "bold"))
    for name, ref in refs.items():
        size = shown.component_bytes.get(name)
        known = "? B" if size is None else shown_bytes(size)
        content = f"{name.replace('_', ' '):<16}{known:>8}  {holds.get(name) or ''}"
        screen.print(plain(content.rstrip()), soft_wrap=True)
        screen.print(plain(f"  {ref}", "dim"), soft_wrap=True)


def _print_inputs(shown: Shown, screen: Console) -> None:
    """Print each pending input, the first one first; nothing if there are none."""
    if shown.pending_inputs:
        screen.print()
        screen.print(Text("pending inputs", "bold"))
    for pending in shown.pending_inputs:
        item = json.dumps(pending.item, ensure_ascii=False)
        text = item if len(item) <= MAX_ITEM else f"{item[:MAX_ITEM]}..."
        screen.print(plain(f"{pending.input_id}  {text}"), soft_wrap=True)
