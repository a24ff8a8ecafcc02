"""Print the sizes of folders, classes and functions of the library that are over their bounds.

Run `python tests/support/bounds.py` in any folder. The exit status is 1 if a size is over its bound
and `EXCEPTIONS` has no reason for it. A bound shows where to look for a second idea; it is no law.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["EXCEPTIONS", "Size", "over_bounds", "sizes_in"]

ROOT = Path(__file__).resolve().parents[2]

BOUNDS = {"folder": 1500, "class": 300, "function": 60}
"""Largest number of lines. Files in the folders inside a folder are not counted."""

EXCEPTIONS = {
    "backends": "one module for each kind of broker",
    "backends/client": "one client of a Redis-like server; the design excepts it",
    "django_sockets": "the public modules; each is independent of most of the others",
    "django_sockets/connection": "one websocket: handshake, receiving, sending, limits and close",
    "django_sockets/integration/channel_layer": "one channel layer, and nothing beside it",
    "django_sockets/delivery": "one path from the bytes of a broker to a subscriber",
    "django_sockets/hub": "one broker on one event loop",
    "django_sockets/hub/presence": "who is present: each module is one part of one protocol",
    "django_sockets/runtime": "event loops, threads, fork and exit need each other",
    "django_sockets/testing": "one module for each tool of the test kit",
    "django_sockets/testing/contract": "one module for each promise of a broker",
    "django_sockets/sockets.py:BaseSocketServer": "documents each hook, option and call",
    "django_sockets/integration/channel_layer/layer.py:ChannelLayer": "documents each call",
    "django_sockets/hub/hub.py:Hub": "documents each call that applications make",
    "django_sockets/delivery/batch.py:read_batch": "one loop over the messages of a batch",
    "django_sockets/connection/connection.py:Connection": "one websocket and all of its states",
    "backends/client/pipeline.py:Pipeline": "one queue with its writer and its reader",
    "backends/client/subscription_state.py:SubscriptionState": "the commands and their answers",
    "django_sockets/connection/receive_loop.py:ReceiveLoop.serve": "one loop and its one end",
    "backends/client/addresses.py:first_success": "half of it documents its arguments",
}
"""The reason why each of these is over its bound."""


class Size(NamedTuple):
    """How long one folder, class or function is."""

    kind: str
    name: str
    lines: int

    def __str__(self) -> str:
        return f"{self.lines:>6} of {BOUNDS[self.kind]:<5} {self.kind:<9} {self.name}"


def sizes_in(root: Path) -> Iterator[Size]:
    """Measure all folders, classes and functions. `root` is the folder of the checkout."""
    folders: Counter[str] = Counter()
    for top in ("django_sockets", "backends"):
        for path in sorted((root / top).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            # The symlink django_sockets/backends shows the files of backends a second time.
            if name.startswith("django_sockets/backends/"):
                continue
            source = path.read_text(encoding="utf-8")
            folders[name.rpartition("/")[0]] += len(source.splitlines())
            yield from _sizes_of(ast.parse(source), name)
    for folder, lines in folders.items():
        yield Size("folder", folder, lines)


def _sizes_of(node: ast.AST, name: str) -> Iterator[Size]:
    """Measure what is defined in a node. A function inside another counts for both of them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            child_name = f"{name}{'.' if ':' in name else ':'}{child.name}"
            kind = "class" if isinstance(child, ast.ClassDef) else "function"
            last = child.end_lineno or child.lineno
            yield Size(kind, child_name, last - child.lineno + 1)
            yield from _sizes_of(child, child_name)
        else:
            yield from _sizes_of(child, name)


def over_bounds(root: Path) -> list[Size]:
    found = [size for size in sizes_in(root) if size.lines > BOUNDS[size.kind]]
    return sorted(found, key=lambda size: (list(BOUNDS).index(size.kind), -size.lines))


def main() -> int:
    found = over_bounds(ROOT)
    for size in found:
        print(f"{size}: {EXCEPTIONS.get(size.name, 'NO REASON GIVEN')}")
    for name in EXCEPTIONS.keys() - {size.name for size in found}:
        print(f"The exception for {name} is not needed any more.")
    return int(any(size.name not in EXCEPTIONS for size in found))


if __name__ == "__main__":
    sys.exit(main())
