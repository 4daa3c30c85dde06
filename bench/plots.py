"""How does time grow with the length of a session? Draw the results that `bench` and `bench.peers` wrote with --json.

pygal draws SVG in pure Python and accepts a style sheet, so that a picture follows the reader's light or dark mode. The
file `figures.json` in the same directory has the numbers, and the versions and machine of the measurement.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

WHERE = Path(__file__).parent / "plots"

_LIGHT, _DARK = ("#24292f", "#8c959f", "#d0d7de"), ("#e6edf3", "#8d96a0", "#444c56")
"""Colors of text, axes and guides."""
_COLORS = ("#d9480f", "#2f81f7", "#3fa34d", "#8a63d2", "#b08800", "#bf4b8a", "#6e7781", "#1aa3a3", "#a0694b")
"""Colors of the lines, `lash_redis` first. Each is visible on white and on near black."""


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


_AT = re.compile(r"commit at ([\d,]+) nodes / bare")


class Figure:
    """p50 by the number of messages, one line for each contender. The time axis is logarithmic."""

    def __init__(self, name: str, title: str, below: str, labels: Sequence[str]) -> None:
        self.name = name
        self.numbers: dict[str, Any] = {"title": title, "below": below, "labels": list(labels), "lines": {}}

    def add(self, contender: str, values: Sequence[float | None]) -> None:
        self.numbers["lines"][contender] = [value and round(value, 1) for value in values]

    def draw(self, folder: Path) -> None:
        numbers = self.numbers
        titles = {"title": numbers["title"], "x_title": numbers["below"], "x_labels": numbers["labels"]}
        chart = pygal.Line(**_CONFIG, **titles, logarithmic=True, value_formatter=_time)
        found = [value for series in numbers["lines"].values() for value in series if value]
        steps = (1, 2, 5) if max(found) < 100 * min(found) else (1,)
        marks = [step * 10**power for power in range(1, 8) for step in steps]
        chart.y_labels = [mark for mark in marks if min(found) / 2 <= mark <= max(found) * 2]
        chart.legend_at_bottom_columns = 3 if len(numbers["lines"]) <= 3 else 2
        for contender, values in numbers["lines"].items():
            chart.add(contender, values)
        # Remove what differs between runs, and the script, which browsers do not run in a picture.
        svg = re.sub(r"<!--.*?-->|<script.*?</script>", "", chart.render(is_unicode=True), flags=re.DOTALL)
        (folder / f"{self.name}.svg").write_text(svg + "\n")


def _time(us: float) -> str:
    return f"{us:,.0f} µs" if us < 1000 else f"{us / 1000:,.4g} ms"


def by_nodes(rows: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """Draw commits by the number of messages."""
    found = [(match[1], row["numbers"]) for row in rows if (match := _AT.fullmatch(row["what"]))]
    if found:
        title = "A commit of two messages and 32 KB of state, p50"
        figure = Figure("commit-by-nodes", title, "messages", [at for at, _ in found])
        for side, label in (("ours", "lash_redis"), ("other", "bare: no checks")):
            figure.add(label, [numbers[f"{side}_p50_us"] for _, numbers in found])
        yield figure


def of_peers(lines: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """Draw resumes by the number of messages, with a line for each store."""
    chosen = [line for line in lines if line["work"] == "resume"]
    if chosen:
        sizes = sorted({line["messages"] for line in chosen})
        figure = Figure("peers-resume", "A session resumed, p50", "messages", [f"{size:,}" for size in sizes])
        for peer in dict.fromkeys(line["peer"] for line in chosen):
            times = {line["messages"]: line["p50_us"] for line in chosen if line["peer"] == peer}
            figure.add(peer.partition(" Redis")[0], [times.get(size) for size in sizes])
        yield figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="a file that --json wrote")
    parser.add_argument("--to", type=Path, default=WHERE, metavar="DIRECTORY")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    kept = options.to / "figures.json"
    drawn: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for path in options.results:
        run = json.loads(path.read_text())["runs"][0]
        for figure in (*by_nodes(run.get("rows", ())), *of_peers(run.get("peers", ()))):
            figure.draw(options.to)
            drawn[figure.name] = {"header": run["header"], **figure.numbers}
    kept.write_text(json.dumps(drawn, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
