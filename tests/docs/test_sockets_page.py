"""docs/sockets.md has every hook, call, attribute and option of BaseSocketServer, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from django_sockets.sockets import BaseSocketServer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sockets.md").read_text(encoding="utf-8")
SOURCE = inspect.getsource(BaseSocketServer)
PUBLIC = {name for name in vars(BaseSocketServer) if not name.startswith("_")} | {"scope"}
HOOKS_BEGIN = SOURCE.index("# Hooks, which an application overrides")
HOOKS_END = SOURCE.index("# Sending to the client")
HOOKS = set(re.findall(r"^\s+(?:async )?def (\w+)\(", SOURCE[HOOKS_BEGIN:HOOKS_END], re.MULTILINE))
ATTRIBUTES = {"scope", "tags", "is_alive", "as_asgi"}
CALLS = {name for name in PUBLIC if inspect.isfunction(getattr(BaseSocketServer, name, None))}
OPTIONS = PUBLIC - CALLS - ATTRIBUTES


def rows(header: str) -> list[list[str]]:
    """The cells of the table that begins with this header."""
    table = PAGE[PAGE.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table]


def signature(text: str) -> tuple[str, list[str]]:
    """`name(a, b=1)` -> the name and the parameters."""
    found = re.fullmatch(r"`(\w+)\((.*)\)`", text)
    assert found is not None, text
    return found[1], [part.split("=")[0].strip() for part in found[2].split(",") if part.strip()]


def parameters(name: str) -> list[str]:
    return list(inspect.signature(getattr(BaseSocketServer, name)).parameters)[1:]


def test_every_hook_has_a_row_with_its_parameters() -> None:
    documented: dict[str, Any] = dict(signature(row[0]) for row in rows("hook"))
    assert set(documented) == HOOKS
    for name, names in documented.items():
        given = parameters(name)
        assert names == given or given == ["args", "kwargs"] or name == "receive", name


def test_every_call_has_a_row_with_its_parameters_and_its_twin() -> None:
    calls = rows("call")
    documented = dict(signature(row[0]) for row in calls)
    twins = {row[1].strip("`") for row in calls}
    assert {*documented, *twins, "async_receive_broadcast"} == CALLS - HOOKS
    for name, names in documented.items():
        assert names == parameters(name)
        assert f"async_{name}" in twins


def test_every_attribute_has_a_row() -> None:
    assert {row[0].strip("`") for row in rows("attribute")} == ATTRIBUTES


def test_every_option_has_a_row_with_its_default() -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows("option")}
    shown = {name: getattr(BaseSocketServer, name) for name in OPTIONS}
    assert documented == {
        name: f'"{value}"' if isinstance(value, str) else str(value)
        for name, value in shown.items()
    }
