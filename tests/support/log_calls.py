"""The calls in the library that write a log record, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["LogCall", "log_calls", "log_calls_in"]

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("debug", "info", "warning", "error", "exception", "critical", "log")
LOGGERS = ("logger", "_throttle", "_failures")
MODULES_THAT_LOG_FOR_OTHERS = ("django_sockets/log.py",)

HELPERS = ("note", "warn_once", "_log_failure", "_close_slow", "explain_refusal")
"""Functions of the library that write a record with the message that they get."""
REFUSAL = "refused a websocket to %s: %s"


class LogCall(NamedTuple):
    """One record that the library may write.

    Attributes:
        level: its name; "" if the caller of a helper does not choose it.
        fields: the attributes that the call sets, in alphabetical order.
    """

    place: str
    level: str
    message: str
    fields: tuple[str, ...]


def log_calls() -> list[LogCall]:
    """All calls of the library, without its test kit."""
    found = []
    for top in ("django_sockets", "backends"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(("django_sockets/backends/", "django_sockets/testing/")):
                continue
            if name not in MODULES_THAT_LOG_FOR_OTHERS:
                found += log_calls_in(path.read_text(encoding="utf-8"), name)
    return found


def log_calls_in(source: str, name: str) -> Iterator[LogCall]:
    """The calls of one file."""
    tree = ast.parse(source)
    for scope, node in _calls(tree, [tree]):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = called or (node.func.id if isinstance(node.func, ast.Name) else "")
        place = f"{name}:{node.lineno}"
        if called in HELPERS:
            yield from _of_helper(node, called, place, scope)
            continue
        owner = _owner(node)
        if called not in METHODS or owner not in LOGGERS:
            continue
        if isinstance(scope[-1], ast.FunctionDef) and scope[-1].name in HELPERS:
            continue  # Its callers count.
        throttled = owner != "logger"
        level = ast.unparse(node.args[0]).removeprefix("logging.") if called == "log" else called
        message = _text(node.args[2 if throttled else 1 if called == "log" else 0], scope, node)
        yield LogCall(place, _level(level), message, _fields(node, scope))


def _calls(node: ast.AST, scope: list[ast.AST]) -> Iterator[tuple[list[ast.AST], ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield scope, child
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from _calls(child, [*scope, child] if is_function else scope)


def _of_helper(node: ast.Call, called: str, place: str, scope: list[ast.AST]) -> Iterator[LogCall]:
    if called == "explain_refusal":
        level = ast.unparse(node.args[2]).removeprefix("logging.")
        yield LogCall(place, level, REFUSAL, ("path", "reason", "status"))
    elif called == "warn_once":
        yield LogCall(place, "WARNING", _constant(node.args[1]), ("socket",))
    elif called == "_log_failure" and len(node.args) == 2:
        yield LogCall(place, "ERROR", f"%s: {_constant(node.args[0])}", ("reason", "socket"))
    else:
        index = 1 if called == "note" else 0
        message = _text(node.args[index], scope, node) if len(node.args) > index else ""
        if message:  # `_close_slow` passes its own argument on, which has a default.
            yield LogCall(place, "INFO", f"%s: {message}", ("code", "counter", "socket"))


def _owner(node: ast.Call) -> str:
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    if isinstance(owner, ast.Attribute):
        return owner.attr
    return owner.id if isinstance(owner, ast.Name) else ""


def _level(name: str) -> str:
    return "ERROR" if name == "exception" else name.upper()


def _constant(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _text(node: ast.expr, scope: list[ast.AST], call: ast.Call) -> str:
    """The text of an argument; of a name, the last text that was assigned to it before the call."""
    if not isinstance(node, ast.Name):
        return _constant(node)
    for part in reversed(scope):
        values = [
            value
            for target, value, line in _assigned(part)
            if target == node.id and line <= call.lineno
        ]
        if values:
            return values[-1]
    return ""


def _assigned(scope: ast.AST) -> Iterator[tuple[str, str, int]]:
    found = []
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for one, value in _pairs(target, node.value):
                    if isinstance(one, ast.Name) and _constant(value):
                        found.append((one.id, _constant(value), node.lineno))
        elif node is scope and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            for one, value in zip(arguments, node.args.defaults, strict=True):
                if _constant(value):
                    found.append((one.arg, _constant(value), node.lineno))
    yield from sorted(found, key=lambda one: one[2])


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """The targets of an assignment and their values, also for `a, b = 1, 2`."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def _fields(node: ast.Call, scope: list[ast.AST]) -> tuple[str, ...]:
    extra = next((word.value for word in node.keywords if word.arg == "extra"), None)
    names: set[str] = set()
    if isinstance(extra, ast.Dict):
        names = {_constant(key) for key in extra.keys if key is not None}
    elif isinstance(extra, ast.Name):
        for part in ast.walk(scope[-1]):
            if isinstance(part, ast.Assign) and part.lineno < node.lineno:
                names |= _keys(part, extra.id)
    return tuple(sorted(names))


def _keys(assignment: ast.Assign, name: str) -> set[str]:
    """The keys that an assignment gives to the dict of this name."""
    keys: set[str] = set()
    for target in assignment.targets:
        for one, value in _pairs(target, assignment.value):
            if isinstance(one, ast.Subscript) and ast.unparse(one.value) == name:
                keys.add(_constant(one.slice))
            elif isinstance(one, ast.Name) and one.id == name and isinstance(value, ast.Dict):
                keys |= {_constant(key) for key in value.keys if key is not None}
    return keys
