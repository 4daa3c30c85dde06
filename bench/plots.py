"""Pictures of what `bench`, `bench.peers` and `bench.scale` wrote with --json: how time grows, beside whom, under what.

pygal, because it draws SVG and nothing else, in pure Python, and takes a style sheet: a picture follows the reader's
light or dark mode. `figures.json` beside the pictures holds the numbers drawn, and on what they were measured.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

WHERE = Path(__file__).parent / "plots"

_LIGHT, _DARK = ("#24292f", "#8c959f", "#d0d7de"), ("#e6edf3", "#8d96a0", "#444c56")
"""Text, axes, guides."""
_COLORS = ("#d9480f", "#2f81f7", "#3fa34d", "#8a63d2", "#b08800", "#bf4b8a", "#6e7781", "#1aa3a3", "#a0694b")
"""Ours first; each tells itself from white and from near black."""


def _css(colors: tuple[str, str, str]) -> str:
    text, axis, guide = colors
    return (
        f"text {{ fill: {text} !important; stroke: none !important; }} .axis .line {{ stroke: {axis} !important; }}"
        f" .guides.line, .guide.line, .major.line {{ stroke: {guide} !important; }}"
    )


_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground=_LIGHT[0],
    foreground_strong=_LIGHT[0],
    foreground_subtle=_LIGHT[1],
    colors=_COLORS,
    font_family="system-ui, sans-serif",
    stroke_width="2.5",
    label_font_size=13,
    major_label_font_size=13,
    legend_font_size=13,
    title_font_size=16,
    opacity=".9",
    stroke_opacity="1",
    guide_stroke_color=_LIGHT[2],
    major_guide_stroke_color=_LIGHT[2],
)

_CONFIG = {
    "style": _STYLE,
    "css": [
        "file://style.css",
        "file://graph.css",
        f"inline:{_css(_LIGHT)} @media (prefers-color-scheme: dark) {{ {_css(_DARK)} }}",
    ],
    "js": (),
    "width": 760,
    "height": 440,
    "margin_bottom": 50,
    "no_prefix": True,
    "legend_at_bottom": True,
    "show_x_guides": False,
    "truncate_legend": -1,
    "dots_size": 3.5,
    "disable_xml_declaration": True,
}


_FORMATS: dict[str, Callable[[float], str]] = {
    "µs": lambda value: f"{value:,.0f} µs" if value < 1000 else f"{value / 1000:,.4g} ms",
    "a second": lambda value: f"{value:,.0f}",
    "%": lambda value: f"{value:.0f}%",
    "MB": lambda value: f"{value:,.0f} MB",
}
_FROM_NOTHING = ("%", "MB")
"""What is drawn from 0 on; all else goes up by powers of ten."""


class Figure:
    """Lines over what stands below, one for each contender."""

    def __init__(self, name: str, title: str, below: str, labels: Sequence[str], unit: str = "µs") -> None:
        self.name = name
        self.numbers: dict[str, Any] = {
            "title": title,
            "below": below,
            "labels": list(labels),
            "unit": unit,
            "lines": {},
        }

    def add(self, contender: str, values: Sequence[float | None]) -> None:
        self.numbers["lines"][contender] = [value and round(value, 1) for value in values]

    def draw(self, folder: Path) -> None:
        numbers, unit = self.numbers, self.numbers["unit"]
        titles = {"title": numbers["title"], "x_title": numbers["below"], "x_labels": numbers["labels"]}
        shown = {"logarithmic": unit not in _FROM_NOTHING, "value_formatter": _FORMATS[unit]}
        chart = pygal.Line(**_CONFIG, **titles, **shown)
        found = [value for series in numbers["lines"].values() for value in series if value]
        if unit in _FROM_NOTHING:
            chart.range = (0, 100 if unit == "%" else max(found))
        else:
            steps = (1, 2, 5) if max(found) < 100 * min(found) else (1,)
            marks = [step * 10**power for power in range(1, 8) for step in steps]
            chart.y_labels = [mark for mark in marks if min(found) / 2 <= mark <= max(found) * 2]
        chart.legend_at_bottom_columns = 3 if len(numbers["lines"]) <= 3 else 2
        for contender, values in numbers["lines"].items():
            chart.add(contender, values)
        # What would differ from day to day, and a script that pictures in a page may not run.
        svg = re.sub(r"<!--.*?-->|<script.*?</script>", "", chart.render(is_unicode=True), flags=re.DOTALL)
        (folder / f"{self.name}.svg").write_text(svg + "\n")


def of_grid(lines: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Commits and reads by the number of nodes and by the size of the components."""
    figures = []
    for name, title, operation, dimension, base in (
        ("commit-by-nodes", "A commit of two messages and 32 KB of state", "commit", "nodes", "1,000"),
        ("read-by-nodes", "A full read", "full read", "nodes", "1,000"),
        (
            "commit-by-size",
            "A commit of two messages, by the size of each of its components",
            "commit",
            "each component",
            "",
        ),
    ):
        chosen = [line for line in lines if line["operation"] == operation and line["dimension"] == dimension]
        usual = [{**line, "at": base} for line in lines if line["operation"] == operation and not line["at"]]
        by_at = {line["at"]: line for line in (*chosen, *(usual if base else ()))}
        if len(by_at) < 2:
            continue
        labels = sorted(by_at, key=lambda at: int(at.split()[0].replace(",", "")))
        figure = Figure(name, f"{title}, p50", "messages" if dimension == "nodes" else "KB in each component", labels)
        for side, label in (
            ("ours", "lash_redis"),
            ("bare", "bare: no checks"),
            ("floor", "raw socket, packed beforehand"),
        ):
            figure.add(label, [by_at[at]["sides"][side]["p50_us"] for at in labels])
        figures.append(figure)
    return figures


def of_peers(lines: Sequence[Mapping[str, Any]]) -> list[Figure]:
    figures = []
    committing = {line["peer"] for line in lines if line["work"] == "commit"}
    for work, title in (("commit", "A turn saved"), ("resume", "A session resumed")):
        chosen = [line for line in lines if line["work"] == work]
        if not chosen:
            continue
        sizes = sorted({line["messages"] for line in chosen})
        figure = Figure(f"peers-{work}", f"{title}, p50", "messages", [f"{size:,}" for size in sizes])
        # What is not in both pictures comes last, so that the others have one color in both.
        for peer in sorted(dict.fromkeys(line["peer"] for line in chosen), key=lambda name: name not in committing):
            times = {line["messages"]: line["p50_us"] for line in chosen if line["peer"] == peer}
            figure.add(peer.partition(" Redis")[0], [times.get(size) for size in sizes])
        figures.append(figure)
    return figures


def of_scale(lines: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What came through, and how much of its core the server used, by how many asked."""
    labels = [f"{count}" for count in sorted({line["count"] for line in lines})]
    below = "worker processes, or connections of one bare client"
    figures = [
        Figure("scale-a-second", "What one server does a second", below, labels, "a second"),
        Figure("scale-busy", "The share of its core that the server uses", below, labels, "%"),
    ]
    for askers, label in (("connections", "recorded"), ("workers", "workers")):
        for operation in ("commit", "resume"):
            chosen = [line for line in lines if (line["askers"], line["operation"]) == (askers, operation)]
            figures[0].add(f"{operation}s, {label}", [line["a_second"] for line in chosen])
            figures[1].add(f"{operation}s, {label}", [min(100.0, line["busy"] * 100) for line in chosen])
    return figures


def of_crowd(windows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """How long turns took, and what memory they took, over time; from second 0 on all sessions are there."""
    labels, below = [f"{window['until_seconds']:.0f}" for window in windows], "seconds"
    times = Figure("crowd-times", "A crowd's turns over time", below, labels[1:])
    for operation in ("commit", "resume"):
        for place, name in enumerate(("p50", "p99")):
            times.add(f"{operation}, {name}", [window[f"{operation}_us"][place] for window in windows[1:]])
    memory = Figure("crowd-memory", "Memory of the crowd over time", below, labels, "MB")
    memory.add("used_memory", [window["used_mb"] for window in windows])
    return [times, memory]


def figures_of(run: Mapping[str, Any]) -> list[Figure]:
    """All that a run has numbers for."""
    kinds = {"grid": of_grid, "peers": of_peers, "scale": of_scale, "crowd": of_crowd}
    return [figure for name, drawn in kinds.items() if run.get(name) for figure in drawn(run[name])]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="what --json wrote")
    parser.add_argument("--to", type=Path, default=WHERE, metavar="DIRECTORY")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    kept = options.to / "figures.json"
    drawn: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for path in options.results:
        run = json.loads(path.read_text())["runs"][0]
        for figure in figures_of(run):
            figure.draw(options.to)
            drawn[figure.name] = {"header": run["header"], **figure.numbers}
    kept.write_text(json.dumps(drawn, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
