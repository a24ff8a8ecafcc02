"""Find code that uses an underscore name of another file.

A name with one leading underscore belongs to the file whose class defines it. These are uses in
another file: `connection._buffer`, `getattr(connection, "_buffer")` and the import of `_buffer`. A
Protocol defines no name of its own: it only describes a class of another file.

The check compares names, because the source has no types. It does not see a use of a name that a
class of the same file defines as well, nor a name that `self` inherits.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["PrivateUse", "uses_in", "uses_in_tree"]

REFLECTION = ("getattr", "setattr", "hasattr", "delattr")


class PrivateUse(NamedTuple):
    """One use, in one line of one file."""

    path: str
    line: int
    name: str
    code: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.code}"


def uses_in_tree(root: Path) -> Iterator[PrivateUse]:
    """Find the uses in all modules of the library. `root` is the folder of the checkout."""
    for folder in ("django_sockets", "backends"):
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            # The symlink django_sockets/backends shows the files of backends a second time.
            if not name.startswith("django_sockets/backends/"):
                yield from uses_in(path.read_text(encoding="utf-8"), name)


def uses_in(source: str, path: str = "module.py") -> Iterator[PrivateUse]:
    tree = ast.parse(source)
    own = set(_names_of_classes(tree))
    for node in ast.walk(tree):
        for name in _foreign(node, own):
            if name.startswith("_") and not name.endswith("_"):
                # Every node that `_foreign` names something for is an expression or a statement.
                assert isinstance(node, (ast.expr, ast.stmt))
                yield PrivateUse(path, node.lineno, name, ast.unparse(node))


def _foreign(node: ast.AST, own: set[str]) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Attribute):
        name, value = node.attr, node.value
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in REFLECTION
        and isinstance(node.args[1], ast.Constant)
    ):
        name, value = str(node.args[1].value), node.args[0]
    else:
        return []
    return [] if name in own or _is_own(value) else [name]


def _is_own(value: ast.expr) -> bool:
    """Whether the expression is `self`, `cls` or `super()`."""
    if isinstance(value, ast.Call):
        value = value.func
    return isinstance(value, ast.Name) and value.id in ("self", "cls", "super")


def _names_of_classes(tree: ast.Module) -> Iterator[str]:
    """Methods, variables and slots of the classes of a module, and attributes set on `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not _is_protocol(node):
            for statement in node.body:
                yield from _names_of(statement)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from [node.attr] if _is_own(node.value) else []


def _is_protocol(node: ast.ClassDef) -> bool:
    return any("Protocol" in ast.unparse(base) for base in node.bases)


def _names_of(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield statement.name
    elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value  # A slot.
