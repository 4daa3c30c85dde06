"""In README and docs, links resolve, examples run and commands exist, and the README stays short."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import lash_redis
from lash_redis.cli import app
from tests.support.doc_examples import run_examples
from tests.support.markdown import blocks_of, prose_of
from tests.support.paths import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md")), ROOT / "tests" / "README.md"]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


# Links


def anchors_of(page: Path) -> set[str]:
    """The ids that GitHub gives the headings: lower case, without punctuation, dashes for blanks."""
    anchors: set[str] = set()
    for heading in HEADING.findall(prose_of(page)):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).lower().replace(" ", "-")
        number = 0
        while (anchor := plain if number == 0 else f"{plain}-{number}") in anchors:
            number += 1
        anchors.add(anchor)
    return anchors


def broken_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(CODE.sub("", prose_of(page))):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        where = page if not path else (page.parent / path).resolve()
        is_there = not path.startswith("/") and where.exists() and where.is_relative_to(ROOT)
        if not is_there or (anchor and anchor not in anchors_of(where)):
            yield target


@EVERY_PAGE
def test_every_relative_link_and_anchor_resolves(page):
    assert list(broken_links(page)) == []


def test_a_missing_file_and_a_missing_anchor_are_broken_links(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A `title`, twice\n\n[ok](#a-title-twice) [no](#title) [gone](gone.md) `[code](x.md)`\n")
    assert list(broken_links(page)) == ["#title", "gone.md"]


def linked_from(page: Path) -> set[Path]:
    return {(page.parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose_of(page))}


def test_every_page_of_the_docs_is_linked_from_an_index_and_that_from_the_readme():
    listed = linked_from(INDEX) | linked_from(DOCS / "operations" / "failures.md")
    assert {page for page in DOCS.rglob("*.md") if page != INDEX} <= listed
    assert INDEX in linked_from(README)


# Examples


@EVERY_PAGE
def test_every_python_example_runs(page, url):
    run_examples(page, url)


def test_the_readme_has_an_example_of_ten_lines_and_one_of_twelve_at_most():
    first, second = (block.text.count("\n") for block in blocks_of(README) if block.language == "python")
    assert first <= 10
    assert second <= 12


def test_the_first_example_of_the_readme_resumes_its_chat_in_another_process(tmp_path):
    (example, *_) = [block.text for block in blocks_of(README) if block.language == "python"]
    (tmp_path / "example.py").write_text(example)
    printed = [
        ast.literal_eval(
            subprocess.run(
                [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
            ).stdout
        )
        for _ in range(2)
    ]
    assert [[message["content"] for message in messages] for messages in printed] == [["Hello"], ["Hello", "Hello"]]
    assert printed[1][0] == printed[0][0]


def test_an_example_that_raises_fails(tmp_path, url):
    page = tmp_path / "page.md"
    page.write_text("```python\nimport asyncio\n```\n\n```python\nawait asyncio.sleep(0)\nraise LookupError\n```\n")
    with pytest.raises(LookupError) as raised:
        run_examples(page, url)
    assert raised.traceback[-1].lineno == 6  # counted from 0


@EVERY_PAGE
def test_every_fenced_block_has_a_language(page):
    """A block without a language would be neither run nor checked."""
    assert {block.language for block in blocks_of(page)} <= {"python", "console", "text"}


# Commands


CLI = typer.main.get_command(app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


def commands_of(page: Path) -> Iterator[str]:
    for block in blocks_of(page):
        if block.language == "console":
            yield from re.findall(r"^\$ (.+)$", block.text, re.MULTILINE)
    for code in CODE.findall(prose_of(page)):
        if re.match(r"`(make|lash-redis|pip) \S", code):
            yield code.strip("`")


def fault_of(command: str) -> str | None:
    """Why a command cannot work, or None. Words in capitals and in <> are placeholders."""
    match shlex.split(command, comments=True):
        case ["make", target, *_]:
            return None if target in TARGETS else f"no target {target}"
        case ["pip", "install", package, *_] if found := re.fullmatch(r"\.\[([a-z,-]+)\]", package):
            unknown = set(found[1].split(",")) - EXTRAS.keys()
            return f"no extra {unknown}" if unknown else None
        case ["python", path] | ["docker", "compose", "-f", path, *_]:
            return None if path == "chat.py" or (ROOT / path).exists() else f"no file {path}"
        case ["uvicorn", "app:app", *_] | ["curl", *_]:
            return None  # tests/examples/test_tutorials.py runs them
        case [".venv/bin/pytest", *words]:
            lacking = [word for word in words if "/" in word and not (ROOT / word.partition("::")[0]).exists()]
            return f"no file {lacking}" if lacking else None
        case ["lash-redis", name, *words]:
            command_named = getattr(CLI, "commands", {}).get(name)
            if command_named is None:
                return f"no command {name}"
            parameters = command_named.params
            known = {option for each in parameters for option in (*each.opts, *each.secondary_opts)} | {"--help"}
            unknown = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"} - known
            return f"no option {unknown}" if unknown else None
    return "neither a make target nor pytest nor a command of lash-redis"


@EVERY_PAGE
def test_every_shell_command_exists(page):
    faults = {command: fault_of(command) for command in commands_of(page)}
    assert {command: fault for command, fault in faults.items() if fault} == {}


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "lash-redis nothing",
        "lash-redis list --nothing",
        "pip install '.[nothing]'",
        ".venv/bin/pytest tests/nothing.py",
        "ls",
        "python nothing.py",
    ],
)
def test_a_command_that_does_not_exist_has_a_fault(command):
    assert fault_of(command) is not None


# Length


def test_the_readme_has_at_most_150_lines_and_1000_words():
    text = README.read_text("utf-8")
    assert text.count("\n") <= 150
    assert len(text.split()) <= 1000


def test_the_readme_starts_with_its_two_commands():
    first, *_ = [block.text for block in blocks_of(README) if block.language == "console"]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["$ make demo", "$ make test"]


HASH = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b")


@EVERY_PAGE
def test_the_prose_contains_no_commit_hash(page):
    assert HASH.findall(CODE.sub("", prose_of(page))) == []


# The reference


def test_every_public_name_is_in_the_reference():
    """`make docs` makes the reference of these pages. A name in two of them would be an error of Sphinx."""
    text = "\n".join(page.read_text("utf-8") for page in DOCS.glob("reference/*.rst"))
    documented = set(re.findall(r"^\.\. (?:autoclass|autofunction|py:type|py:data):: (\w+)$", text, re.MULTILINE))
    assert set(lash_redis.__all__) - documented == set()
    assert set(lash_redis.blocking.__all__) - documented == set()
