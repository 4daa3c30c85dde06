"""Configures the site, which `make docs` builds with Sphinx. The pages are Markdown; the reference is in docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lash_redis

project = "lash_redis"
author = "lash_redis contributors"
release = version = lash_redis.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]  # index.rst includes it
html_theme = "furo"
html_title = f"lash_redis {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

myst_heading_anchors = 4
myst_enable_extensions = ["tasklist"]
myst_links_external_new_tab = False

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 80
default_role = "py:obj"  # docstrings put code in single backticks, as Markdown does; names become links
nitpicky = True

PUBLIC = {name: f"lash_redis.{name}" for name in lash_redis.__all__}
INNER_TYPE = re.compile(r"~?lash_redis(?:\.\w+)+\.(\w+)")
CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)")
FOLLOWED = re.compile(r"(`+[^`]+`+)(\w?)")
NAME = re.compile(r"[\w.]+")
PROJECT = re.compile(r"\]\((?:\.\./)*(CONTRIBUTING|SECURITY|CHANGELOG)\.md")
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:(?:\.\./)+|tests/)(?:\w+/)?[A-Z]+\.md[^)]*\)")


def link_public_name(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link a type by its public name. Types of other packages, and inner types, get no link and no warning."""
    if node.get("refdomain") != "py":
        return None
    public = PUBLIC.get(node["reftarget"].rpartition(".")[2])
    if public is None:
        return content
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content)


def hide_inner_constructor(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> Any:
    """Leave out the constructor of a class that only the package makes: it has parameters of inner types."""
    types = INNER_TYPE.findall(signature or "") if what == "class" else []
    return ("", returned) if any(each not in PUBLIC for each in types) else None


def as_rest(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn what Markdown accepts into reStructuredText: a list behind a paragraph, and code that letters follow.

    Code that is no name, such as `unix://<path>`, gets double backticks, because a role would read it as a link.
    """
    for at, line in enumerate(lines):
        lines[at] = CODE.sub(lambda code: code[0] if NAME.fullmatch(code[1]) else f"`{code[0]}`", line)
        lines[at] = FOLLOWED.sub(lambda code: code[1] + (rf"\ {code[2]}" if code[2] else ""), lines[at])
    for at in range(len(lines) - 1, 0, -1):
        is_item = re.match(r"\s*([-*]|\d+\.) ", lines[at])
        if is_item and lines[at - 1].strip() and not re.match(r"\s*([-*]|\d+\.) |  ", lines[at - 1]):
            lines.insert(at, "")


def link_pages(app: Any, page: str, source: list[str]) -> None:
    """Fill the pages of docs/project with CONTRIBUTING.md and the like, and link them.

    Other Markdown files outside of docs/ are no pages of the site. They are named without a link.
    """
    if page.startswith("project/"):
        text = Path(app.srcdir, "..", f"{Path(page).name.upper()}.md").read_text("utf-8")
        source[0] = text.replace("](docs/README.md", "](/index.rst").replace("](docs/", "](/")
    source[0] = OUTSIDE.sub(r"\1", PROJECT.sub(lambda found: f"](/project/{found[1].lower()}.md", source[0]))


def setup(app: Any) -> None:
    app.connect("missing-reference", link_public_name)
    app.connect("autodoc-process-signature", hide_inner_constructor)
    app.connect("autodoc-process-docstring", as_rest)
    app.connect("source-read", link_pages)
