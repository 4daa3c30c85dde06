"""The drawing of a message graph in `show`: a line of the conversation runs downwards, and branches are siblings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from lash_redis.cli.messages import message_text_of, summary_of, tool_names
from lash_redis.cli.output import counted, one_line, plain
from lash_redis.models import PersistedSessionRead, PluginPayload, SessionNodeRecord

FOLDED_RUN = 6
"""Maximum length of a run of nodes without branches that is shown completely. Of a longer run, four nodes are shown."""
FOLDED_LINE = 48
"""Maximum number of entries of a line. Of a longer line, the beginning and the end are shown."""
FOLDED_FORKS = 12
"""Maximum number of nodes with branches in a line, because the text after each is indented by 3 characters."""
MIN_LABEL = 20
"""Minimum width of the text of a node. If ids and indentation leave less, the line is longer than the screen."""


def graph_lines(read: PersistedSessionRead, width: int) -> Iterator[Text]:
    """Draw the graph of a session in lines for a screen of `width` characters. Ids are complete.

    A line follows the active path if it can, else the larger branch, so a chat without branches is not indented. At a
    node with several children each child begins with `├─`, the one that continues the line with `└─`.
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
    yield Text.assemble(
        ("graph", "bold"),
        (f"   ● active path ({len(active)})   ○ elsewhere ({len(graph.nodes) - len(active)})", "dim"),
    )
    plot = _Plot(children, sizes, active, graph.leaf_node_id, known, tool_names(graph.nodes), width)
    if len(roots) == 1:
        yield from plot.line(roots[0], "", "")
    else:
        roots.sort(key=lambda node: node.node_id in active)
        for root in roots:
            yield from plot.line(root, *(("└─ ", "   ") if root is roots[-1] else ("├─ ", "│  ")))
    if len(ordered) < len(graph.nodes):
        yield Text(f"{len(graph.nodes) - len(ordered)} nodes have no root: their parents form a cycle", "red")


@dataclass(frozen=True, slots=True)
class _Plot:
    """The data that drawing the graph needs."""

    children: Mapping[str | None, Sequence[SessionNodeRecord]]
    sizes: Mapping[str, int]
    active: set[str]
    leaf: str | None
    known: set[str]
    names: Mapping[str, str]
    width: int

    def line(self, first: SessionNodeRecord, lead: str, below: str) -> Iterator[Text]:
        """Draw the line that begins with `first`, and the branches next to it.

        `lead` precedes the first node, `below` all later ones. A branch has at most half of the nodes of its line,
        except next to the active path, so the recursion is at most as deep as the logarithm of the number of nodes.
        """
        line = self._follow(first)
        shown = _folded([bool(branches) for _, branches in line])
        shown.update(at for at, (node, _) in enumerate(line) if node.node_id == self.leaf)
        gap = 0
        for at, (node, branches) in enumerate(line):
            if at not in shown:
                gap += 1
                continue
            if gap:
                yield self._fold(lead, line[at - gap : at])
                gap, lead = 0, below
            yield self._entry(node, lead)
            for branch in branches:
                yield from self.line(branch, f"{below}├─ ", f"{below}│  ")
            lead, below = (f"{below}└─ ", f"{below}   ") if branches else (below, below)

    def _follow(self, first: SessionNodeRecord) -> list[tuple[SessionNodeRecord, list[SessionNodeRecord]]]:
        """Return the nodes of the line that begins with `first`, each with the siblings of its next node."""
        line = []
        node: SessionNodeRecord | None = first
        while node is not None:
            following = sorted(
                self.children.get(node.node_id, ()),
                key=lambda child: (child.node_id in self.active, self.sizes[child.node_id]),
            )
            line.append((node, following[:-1]))
            node = following[-1] if following else None
        return line

    def _fold(self, lead: str, hidden: Sequence[tuple[SessionNodeRecord, Sequence[SessionNodeRecord]]]) -> Text:
        aside = sum(self.sizes[branch.node_id] for _, branches in hidden for branch in branches)
        others = f", and {aside} in branches off them" if aside else ""
        return Text(f"{lead}┆ {counted(len(hidden), 'node')}{others}", "dim")

    def _entry(self, node: SessionNodeRecord, lead: str) -> Text:
        active = node.node_id in self.active
        style = "" if active else "dim"
        text = Text.assemble((lead, "dim"), ("● ", "bold green") if active else ("○ ", "dim"))
        text.append_text(plain(node.node_id, style)).append("  ")
        notes = Text()
        if node.node_id == self.leaf:
            notes.append("  ◀ leaf", "bold green")
        if node.parent_node_id is not None and node.parent_node_id not in self.known:
            notes.append("  (its parent is missing)", "yellow")
        room = max(MIN_LABEL, self.width - cell_len(text.plain) - len(notes))
        return text.append_text(plain(one_line(label_of(node, self.names), room), style)).append_text(notes)


def _folded(has_branches: Sequence[bool]) -> set[int]:
    """Choose the nodes of a line to show: those with branches, and the ends of the runs between them.

    Of a long line, or of one with many branches, only the beginning and the end are shown.
    """
    shown: set[int] = set()
    start = 0
    forks = [at for at, branches in enumerate(has_branches) if branches]
    for end in [*forks, len(has_branches)]:
        run = range(start, end)
        shown.update(run if len(run) <= FOLDED_RUN else [*run[:2], *run[-2:]])
        start = end + 1
    shown.update(forks)
    if len(forks) > FOLDED_FORKS:
        first, last = forks[FOLDED_FORKS // 2 - 1], forks[-FOLDED_FORKS // 2]
        shown = {at for at in shown if not first < at < last}
    if len(shown) > FOLDED_LINE:
        places = sorted(shown)
        shown = {*places[: FOLDED_LINE // 2], *places[-FOLDED_LINE // 2 :]}
    return shown


def label_of(node: SessionNodeRecord, names: Mapping[str, str]) -> str:
    """Describe a node: the text of its message, its event or its plugin. `names`: see `tool_names`."""
    message = message_text_of(node, names)
    if message is not None:
        return summary_of(message)
    if isinstance(node.payload, PluginPayload):
        return f"plugin {node.payload.plugin_type}"
    event = node.event()
    return f"event {next(iter(event), '?')}" if isinstance(event, dict) else "event"
