"""Modules import from lower layers only, without cycles. docs/internals/layers.md draws the same layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lash_redis

PACKAGE = Path(lash_redis.__file__).parent
LAYERS = [
    ["errors"],
    ["_validate"],
    ["options", "models"],
    ["protocol"],
    ["embedded"],
    ["transport"],
    ["session"],
    ["acl", "chat", "listing", "runtime"],
    ["audit", "owner_deletion"],
    ["cache"],
    ["blocking"],
    ["integrations"],
    ["transfer"],
    ["cli"],
]
"""From the lowest to the highest. Modules and packages of one layer do not import each other, except WITHIN_A_LAYER."""
WITHIN_A_LAYER = {("options", "models"), ("models", "options")}


def modules() -> dict[str, Path]:
    """Every module by its dotted name relative to the package, without the `__init__` of the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path
    del found["__init__"]
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules that a module imports at any level, also if only for type checkers."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lash_redis":
            source = node.module.removeprefix("lash_redis").removeprefix(".")
            for alias in node.names:
                target = f"{source}.{alias.name}".removeprefix(".")
                yield target if target in MODULES else source
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("lash_redis.") for alias in node.names if alias.name in MODULES)


def layer_of(name: str) -> int:
    top = name.split(".")[0]
    return next(number for number, layer in enumerate(LAYERS) if top in layer)


def test_every_module_is_in_a_layer() -> None:
    assert {name.split(".")[0] for name in MODULES} == {top for layer in LAYERS for top in layer}


def test_a_module_imports_from_lower_layers_only() -> None:
    upward = [
        f"{name} imports {target}"
        for name in MODULES
        for target in imports(name)
        if target
        and name.split(".")[0] != target.split(".")[0]
        and layer_of(target) >= layer_of(name)
        and (name.split(".")[0], target.split(".")[0]) not in WITHIN_A_LAYER
    ]
    assert upward == []


def test_modules_have_no_import_cycles() -> None:
    """The `__init__` modules are not counted, because they only collect names."""
    graph = {
        name: {each for each in imports(name) if each and MODULES[each].name != "__init__.py"}
        for name, path in MODULES.items()
        if path.name != "__init__.py"
    }
    assert cycle_in(graph) == []


def test_packages_have_no_import_cycles() -> None:
    """A package inside of another one is one unit, because importing one of its modules imports all of them."""
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        unit = unit_of(name)
        graph.setdefault(unit, set()).update(unit_of(each) for each in imports(name) if each and unit_of(each) != unit)
    assert cycle_in(graph) == []


def unit_of(name: str) -> str:
    """The inner package of a module, such as `protocol.commands`; the module itself if it is in no inner package."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 else name


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The names in import cycles, and the names that import them."""
    done: set[str] = set()
    while ready := {name for name in graph.keys() - done if graph[name] <= done}:
        done |= ready
    return sorted(graph.keys() - done)
