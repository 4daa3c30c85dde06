"""Prose is plain: words of the former style are listed, and found in the package, scripts, pages and tests."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())

INSTEAD = {
    r"whoever|whatever|wherever|nobody|somebody|anybody": "name the actor: caller, worker, server, script",
    r"look(s|ed|ing)?": "decode, access, read, search, check",
    r"tells?|(un)?told|telling": "report, distinguish, show",
    r"says?|said|saying": "contain, name, store, report, publish, specify",
    r"let(s|ting)? go": "release",
    r"anew|afresh": "again, reload",
    r"likewise|besides?|thereof|hence": "also, next to, so",
    r"comes? (round|to be)|came (round|to)": "repeats, results in",
    r"go(es|ne)? (by|on)|went on": "use; continue",
    r"stands? in the way|stands? (there|beside|behind)": "remaining overhead; is stored",
    r"believed|borne|thawed|thaws|in vain": "use the standard word",
    r"h(old|olds|eld|olding)( [^ .]+){0,8} against": "compare with, verify, audit",
    r"hand(s|ed|ing)? (out|over|it out)": "return, pass, assign",
    r"laws?": "invariant",
    r"all the same|as it were|so to speak|now and then": "leave it out; periodically",
    r"mend(s|ed|ing)?": "repair",
    r"ours?": "this package's, the client's, this process's",
    r"in one go|the bare thing": "at once; a bare operation",
    r"at the most": "at most",
    r"under way": "in flight, in progress, running",
    r"(is|are) to be": "must be",
}
"""Words of the former style, and what to write instead."""

CODE = re.compile(r"`[^`\n]+`")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def old_words(text: str) -> Iterator[str]:
    """Each old word in a text, with its line and what to write instead. Code in backticks is not prose."""
    plain = CODE.sub("`code`", text)
    for words, instead in INSTEAD.items():
        for found in re.finditer(rf"\b({words})\b", re.sub(r"\s", " ", plain), re.IGNORECASE):
            yield f"{plain.count(chr(10), 0, found.start()) + 1}: {found[0]!r} ({instead})"


def prose_of_page(text: str) -> str:
    """A Markdown page without its fenced blocks; lines keep their numbers."""
    return FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def prose_of_lua(text: str) -> str:
    """The comments of a script, line by line."""
    return "\n".join(line.partition("--")[2] for line in text.splitlines())


def prose_of_python(text: str) -> str:
    """Comments, docstrings and texts with a blank in them; everything else is blank, so that lines keep their numbers.

    Names of words in a text, such as the fields of an f-string, are code and not prose.
    """
    lines = [""] * text.count("\n") + [""]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] += " " + token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.split("\n")):
                lines[min(node.lineno - 1 + offset, len(lines) - 1)] += " " + line
    return "\n".join(lines)


PROSE = {".md": prose_of_page, ".lua": prose_of_lua, ".py": prose_of_python}
FILES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "tests" / "README.md",
    ROOT / "bench" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "lua").rglob("*.lua")),
    *sorted((ROOT / "lash_redis").rglob("*.py")),
    *sorted((ROOT / "bench").glob("*.py")),
    *sorted((ROOT / "examples").rglob("*.py")),
    *(path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)),  # it contains the old words
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.relative_to(ROOT)}")
def test_the_prose_contains_no_old_words(path):
    assert list(old_words(PROSE[path.suffix](path.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        (".md", "Whoever asks\nwaits `told`. It is\ntold.\n```text\nsaid\n```\n", ["1: 'Whoever'", "3: 'told'"]),
        (".lua", "-- holds blobs against heads\nlocal said = 'told'\n", ["1: 'holds blobs against'"]),
        (".py", '"""First.\n\nA law."""\nsaid = "told"  # anew\nraise E(f"{said} is told {told}")\n',
         ["5: 'told'", "4: 'anew'", "3: 'law'"]),
    ],
)  # fmt: skip
def test_an_old_word_is_found_in_prose_and_not_in_code(kind, text, found):
    assert [line.partition(" (")[0] for line in old_words(PROSE[kind](text))] == found
