"""docs/operations/monitoring.md lists every message that the package logs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support.paths import ROOT

PAGE = " ".join((ROOT / "docs" / "operations" / "monitoring.md").read_text("utf-8").split())
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def messages() -> Iterator[str]:
    """The first argument of each call of a logger's method in the package."""
    for path in sorted((ROOT / "lash_redis").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(ast.Attribute(ast.Name("log"), level), [ast.Constant(str(message)), *_]):
                    if level in LEVELS:
                        yield message


def test_the_page_about_logs_has_each_message_of_the_package() -> None:
    found = set(messages())
    assert len(found) >= 9
    words = {part.strip(" ,:") for message in found for part in re.split(r"%\w", message)}
    assert {part for part in words if part and part not in PAGE} == set()
