"""`lash-redis show`: one session, as it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lash_redis.cache import SessionCache
from lash_redis.cli.connection import Connection
from lash_redis.cli.output import UNFIT, CommandError, one_line, plain, shown_bytes
from lash_redis.models import (
    HydratedSessionCheckpoint,
    LeaseInfo,
    PersistedSessionRead,
    PluginPayload,
    SessionNodeRecord,
    SessionUsageReport,
)
from lash_redis.session.reader import Reader

FOLDED_RUN = 6
"""Maximum length of a run of nodes without branches that is shown completely. Of a longer run, four nodes are shown."""
FOLDED_LINE = 48
"""Maximum number of entries of a line. Of a longer line, the beginning and the end are shown."""

_COMPONENTS = ("tool_state", "plugin_snapshot", "execution_state")
_STYLES = {"User": "cyan", "Assistant": "green", "System": "yellow"}


@dataclass(frozen=True, slots=True)
class Shown:
    """A session as read, with its expiry, its lease and the sizes of its components."""

    read: PersistedSessionRead
    nodes_in_log: int
    expires_in_ms: int | None
    lease: LeaseInfo | None
    lease_ends_in: float
    """Seconds; negative if the lease has expired."""
    component_bytes: Mapping[str, int]

    def to_json(self, *, messages: bool) -> dict[str, Any]:
        read, held = self.read, _held(self.read)
        active = {node.node_id for node in read.graph.active_path()}
        document: dict[str, Any] = {
            "session_id": read.session_id,
            "head_revision": read.head_revision,
            "commit_id": read.commit_id,
            "leaf_node_id": read.graph.leaf_node_id,
            "config": read.config.to_json(),
            "nodes": {"live": len(read.graph.nodes), "total": self.nodes_in_log, "active": len(active)},
            "expires_in_ms": self.expires_in_ms,
            "lease": self.lease and {**self.lease.to_json(), "ends_in_s": self.lease_ends_in},
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
                    "label": _label(node),
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
        keys = cache.layout.session(session_id)
        found = await Reader(cache.shared, keys).snapshot()
        if found is None:
            raise CommandError(UNFIT, f"no session {session_id!r} in namespace {namespace!r}")
        read = found.read()
        length, expires, (seconds, micros) = await source.ask(("LLEN", keys.log), ("PTTL", keys.head), ("TIME",))
        lease = await cache.session(session_id).load_lease()
        ends_in = 0.0 if lease is None else lease.deadline - int(seconds) - int(micros) / 1e6
        bodies = found.components
        refs = {name: getattr(_held(read), f"{name}_ref") for name in _COMPONENTS}
        sizes = {name: len(bodies[ref]) for name, ref in refs.items() if ref in bodies}
        return Shown(read, length, expires if expires >= 0 else None, lease, ends_in, sizes)
    finally:
        await source.close()


def print_session(shown: Shown, screen: Console, *, messages: bool) -> None:
    screen.print(_head(shown))
    screen.print()
    screen.print(graph_tree(shown.read))
    if shown.read.token_ledger:
        screen.print()
        screen.print(_usage(shown.read))
    screen.print()
    screen.print(_components(shown))
    if messages:
        screen.print()
        screen.rule("active path", style="dim")
        for message in message_texts(shown.read.graph.active_path()):
            screen.print(message_lines(message))


def _head(shown: Shown) -> Panel:
    read = shown.read
    config = read.config
    grid = Table.grid(padding=(0, 3))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    turn = _held(read).turn_state
    live, total = len(read.graph.nodes), shown.nodes_in_log
    settings = [config.configured_model, config.model_variant, config.provider_id, config.execution_mode]
    if config.context_window:
        settings.append(f"{config.context_window:,} tokens of context")
    if config.standard_context_approach:
        settings.append(str(config.standard_context_approach.get("kind")))
    for name, value in (
        ("revision", str(read.head_revision)),
        ("commit", read.commit_id or "not known"),
        ("leaf", read.graph.leaf_node_id or "none"),
        ("nodes", f"{live} live, {total} in the log"),
        ("turn", f"{turn.turn_index}, mode {turn.mode_turn_options.mode_id}"),
        ("config", " · ".join(filter(None, settings)) or "empty"),
        ("checkpoint", read.checkpoint_ref or "none"),
        ("expires", "never" if shown.expires_in_ms is None else f"in {_duration(shown.expires_in_ms)}"),
        ("lease", _lease(shown)),
    ):
        grid.add_row(name, plain(value))
    return Panel(grid, title=plain(read.session_id, "bold"), title_align="left", border_style="dim", expand=False)


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


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2), pad_edge=False)


def _usage(read: PersistedSessionRead) -> Table:
    table = _table("tokens")
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


def _components(shown: Shown) -> Table:
    table = _table("components")
    table.add_column("component", header_style="dim")
    table.add_column("bytes", justify="right", header_style="dim")
    table.add_column("holds", header_style="dim")
    table.add_column("ref", header_style="dim", no_wrap=True)
    held = _held(shown.read)
    tools, plugins = held.tool_state, held.plugin_snapshot
    holds = {
        "tool_state": tools and f"{len(tools.tools)} tools, generation {tools.generation}",
        "plugin_snapshot": plugins
        and ", ".join(f"{name} at {entry.meta.revision}" for name, entry in plugins.plugins.items()),
    }
    for name in _COMPONENTS:
        ref, size = getattr(held, f"{name}_ref"), shown.component_bytes.get(name)
        row = (Text("none", "dim"), plain(""), plain(""))
        if ref:
            known = "?" if size is None else shown_bytes(size)
            row = (plain(known), plain(holds.get(name) or ""), plain(ref[:16], "dim"))
        table.add_row(name.replace("_", " "), *row)
    return table


# The graph


def graph_tree(read: PersistedSessionRead) -> Tree:
    """Draw the graph: a line of the conversation runs downwards, and branches are indented below their parent.

    A line follows the active path if it can, else the larger branch. So the depth is at most the logarithm of the
    number of nodes, and a chat without branches is not indented.
    """
    graph = read.graph
    children: dict[str | None, list[SessionNodeRecord]] = {}
    known = {node.node_id for node in graph.nodes}
    for node in graph.nodes:
        children.setdefault(node.parent_node_id if node.parent_node_id in known else None, []).append(node)
    roots = children.pop(None, [])
    ordered = list(roots)
    for node in ordered:
        ordered.extend(children.get(node.node_id, ()))
    sizes: dict[str, int] = {}
    for node in reversed(ordered):
        sizes[node.node_id] = 1 + sum(sizes[child.node_id] for child in children.get(node.node_id, ()))
    active = {node.node_id for node in graph.active_path()}
    plot = _Plot(children, sizes, active, graph.leaf_node_id, known)
    title = Text("graph", style="bold")
    aside = len(graph.nodes) - len(active)
    title.append(f"   ● active path ({len(active)})   ○ elsewhere ({aside})", style="not bold dim")
    tree = Tree(title, guide_style="dim")
    for root in sorted(roots, key=lambda node: node.node_id not in active):
        plot.draw(tree, root)
    if len(ordered) < len(graph.nodes):
        tree.add(Text(f"{len(graph.nodes) - len(ordered)} nodes have no root: their parents form a cycle", "red"))
    return tree


@dataclass(frozen=True, slots=True)
class _Plot:
    """The data that drawing the graph needs."""

    children: Mapping[str | None, Sequence[SessionNodeRecord]]
    sizes: Mapping[str, int]
    active: set[str]
    leaf: str | None
    known: set[str]

    def draw(self, onto: Tree, first: SessionNodeRecord) -> None:
        """Draw the line that begins with `first`, and the branches below its nodes."""
        line: list[tuple[SessionNodeRecord, list[SessionNodeRecord]]] = []
        node: SessionNodeRecord | None = first
        while node is not None:
            following = sorted(
                self.children.get(node.node_id, ()),
                key=lambda child: (child.node_id in self.active, self.sizes[child.node_id]),
                reverse=True,
            )
            line.append((node, following[1:]))
            node = following[0] if following else None
        shown = _folded([bool(branches) for _, branches in line])
        shown.update(at for at, (node, _) in enumerate(line) if node.node_id == self.leaf)
        gap = 0
        for at, (node, branches) in enumerate(line):
            if at in shown:
                if gap:
                    self._fold(onto, line[at - gap : at])
                    gap = 0
                below = onto.add(self._line(node))
                for branch in branches:
                    self.draw(below, branch)
            else:
                gap += 1

    def _fold(self, onto: Tree, hidden: Sequence[tuple[SessionNodeRecord, Sequence[SessionNodeRecord]]]) -> None:
        aside = sum(self.sizes[branch.node_id] for _, branches in hidden for branch in branches)
        text = f"┆ {len(hidden)} nodes" + (f", and {aside} in branches off them" if aside else "")
        onto.add(Text(text, style="dim"))

    def _line(self, node: SessionNodeRecord) -> Text:
        active = node.node_id in self.active
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(*("● ", "bold green") if active else ("○ ", "dim"))
        text.append_text(plain(one_line(node.node_id, 14), "" if active else "dim"))
        text.append("  ")
        text.append_text(plain(one_line(_label(node), 72), "" if active else "dim"))
        if node.node_id == self.leaf:
            text.append("  ◀ leaf", style="bold green")
        if node.parent_node_id is not None and node.parent_node_id not in self.known:
            text.append("  (its parent is missing)", style="yellow")
        return text


def _folded(has_branches: Sequence[bool]) -> set[int]:
    """Choose the nodes of a line to show: those with branches, and the ends of the runs between them.

    Of a long line, only the beginning and the end are shown.
    """
    shown: set[int] = set()
    start = 0
    for end in [*(at for at, branches in enumerate(has_branches) if branches), len(has_branches)]:
        run = range(start, end)
        shown.update(run if len(run) <= FOLDED_RUN else [*run[:2], *run[-2:]])
        start = end + 1
        if end < len(has_branches):
            shown.add(end)
    if len(shown) > FOLDED_LINE:
        places = sorted(shown)
        shown = {*places[: FOLDED_LINE // 2], *places[-FOLDED_LINE // 2 :]}
    return shown


def _label(node: SessionNodeRecord) -> str:
    message = node.message()
    if message is not None:
        return f"{message.get('role', '?')}: {_text(message)}"
    if isinstance(node.payload, PluginPayload):
        return f"plugin {node.payload.plugin_type}"
    event = node.event()
    return f"event {next(iter(event), '?')}" if isinstance(event, dict) else "event"


def _text(message: Mapping[str, Any]) -> str:
    texts = [text if name is None else f"[{name}] {text}" for name, text in _parts(message)]
    return " ".join(texts)


def _parts(message: Mapping[str, Any]) -> list[tuple[str | None, str]]:
    """Return the kind and the text of each part of a message. The kind of plain text is None."""
    found: list[tuple[str | None, str]] = []
    parts = message.get("parts")
    for part in parts if isinstance(parts, list) else ():
        if not isinstance(part, dict):
            continue
        kind, content = part.get("kind"), part.get("content")
        text = content if isinstance(content, str) else ""
        if kind in ("Text", "Prose"):
            name = None
        elif kind in ("ToolCall", "ToolResult"):
            name = f"{'calls' if kind == 'ToolCall' else 'from'} {part.get('tool_name') or 'a tool'}"
        else:
            name = str(kind).lower()
        if text.strip() or name is not None:
            found.append((name, text))
    return found


# The conversation


def message_texts(path: Sequence[SessionNodeRecord]) -> list[dict[str, Any]]:
    """Return the messages of a path: node id, role, and the kind and text of each part."""
    return [
        {
            "node_id": node.node_id,
            "role": str(message.get("role")),
            "parts": [{"kind": name or "text", "text": text} for name, text in _parts(message)],
        }
        for node in path
        if (message := node.message()) is not None
    ]


def message_lines(message: Mapping[str, Any], *, max_lines: int | None = None) -> Group:
    """Format a message for a terminal, with at most `max_lines` lines of each part."""
    role = message["role"]
    style = _STYLES.get(role, "magenta")
    answers = message["parts"] and all(part["kind"].startswith("from ") for part in message["parts"])
    lines: list[Any] = [plain("Tool" if answers else role, "bold magenta" if answers else f"bold {style}")]
    for part in message["parts"]:
        text, kind = part["text"].strip(), part["kind"]
        rows = text.split("\n")
        if max_lines is not None and (len(rows) > max_lines or len(text) > 80 * max_lines):
            text = "\n".join(rows[:max_lines])[: 80 * max_lines].rstrip() + " …"
        body = plain(text) if kind == "text" else plain(f"{kind}  ", "magenta").append_text(plain(text, "dim"))
        lines.append(Padding(body, (0, 0, 0, 2)))
    return Group(*lines, Text())
