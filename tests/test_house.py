"""The structure of the library: private names stay in their file, and sizes stay within bounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import bounds
from support.private_names import uses_in, uses_in_tree

ROOT = Path(__file__).resolve().parents[1]

LIBRARY_NAMES = {
    "_asyncio_future_blocking": "asyncio: marks a future that a coroutine waits for",
    "_default_manager": "Django: documented for reusable applications",
    "_enter_task": "asyncio: documented for third-party implementations of tasks",
    "_fields": "collections.namedtuple: documented",
    "_from_testcase": "Django: marks the transactions of TestCase; nothing public tells them apart",
    "_get_running_loop": "asyncio: documented; returns None where no loop runs",
    "_getframe": "sys: documented",
    "_leave_task": "asyncio: documented for third-party implementations of tasks",
    "_meta": "Django: documented",
    "_register_atexit": "threading: runs before the interpreter waits for its threads",
    "_replace": "collections.namedtuple: documented",
    "_set_running_loop": "asyncio: documented for event loops",
}
"""Names that only Python and Django define, with the reason to use them anywhere."""

EXCEPTIONS = {
    "backends/fakeredis.py _sock": "redis-py has no public access to the socket of a connection",
    "backends/fakeredis.py _response_available": "wakes the thread of fakeredis that waits",
    "django_sockets/management/commands/sockets.py _out": "Django: the stream behind self.stdout",
    "django_sockets/middleware/signals.py _password": "Django: set by set_password until the save",
    "django_sockets/middleware/stores.py _cache": "Django: the cache of the session engine",
    "django_sockets/runtime/async_hygiene.py _threads": "executor: whether it has a thread already",
}
"""Names that are too ordinary to be allowed everywhere, by file."""


def test_a_private_name_is_used_only_in_the_file_that_defines_it() -> None:
    found = [
        str(use)
        for use in uses_in_tree(ROOT)
        if use.name not in LIBRARY_NAMES and f"{use.path} {use.name}" not in EXCEPTIONS
    ]
    assert found == []


def test_every_exception_is_still_needed() -> None:
    uses = list(uses_in_tree(ROOT))
    assert LIBRARY_NAMES.keys() - {use.name for use in uses} == set()
    assert EXCEPTIONS.keys() - {f"{use.path} {use.name}" for use in uses} == set()


@pytest.mark.parametrize(
    "planted",
    [
        "hub._connections",
        "self.hub._connections",
        "hub().control._connections.clear()",
        "hub._connections = {}",
        "del hub._connections",
        "hub._close()",
        "getattr(hub, '_connections')",
        "setattr(hub, '_connections', {})",
        "from ..hub.hub import Hub, _names",
        "from .hub import _names as names",
        "_connections = hub._connections",
        "class Own:\n    def f(self):\n        return self.hub._connections",
        "class Hub(Protocol):\n    _connections: int\ndef f(hub: Hub): hub._connections",
        "class Hub(Protocol):\n    def _close(self): ...\ndef f(hub: Hub): hub._close()",
    ],
)
def test_a_planted_use_is_found(tmp_path: Path, planted: str) -> None:
    folder = tmp_path / "django_sockets" / "delivery"
    folder.mkdir(parents=True)
    (tmp_path / "backends").mkdir()
    (folder / "planted.py").write_text(planted, encoding="utf-8")
    (use,) = uses_in_tree(tmp_path)
    assert use.path == "django_sockets/delivery/planted.py"
    assert use.name in ("_connections", "_close", "_names")


@pytest.mark.parametrize(
    "code",
    [
        "self._connections",
        "cls._connections",
        "super()._close()",
        "hub.connections",
        "_connections",
        "hub.__class__",
        "from gettext import gettext as _",
        "from . import __main__",
        "getattr(hub, name)",
        "class Own:\n    _connections = 0\ndef f(own): own._connections",
        "class Own:\n    def _close(self): ...\ndef f(own): own._close()",
        "class Own:\n    __slots__ = ('_connections',)\ndef f(own): own._connections",
        "class Own:\n    def __init__(self): self._connections = 0\ndef f(own): own._connections",
    ],
)
def test_a_name_of_the_same_file_is_not_reported(code: str) -> None:
    assert [str(use) for use in uses_in(code)] == []


def test_sizes_are_within_their_bounds_or_have_a_reason() -> None:
    script = [sys.executable, ROOT / "tests" / "support" / "bounds.py"]
    ended = subprocess.run(script, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("x = 0\n" * 1501, "folder", "backends"),
        ("class Big:\n" + "    x = 0\n" * 300, "class", "backends/planted.py:Big"),
        ("def big():\n" + "    x = 0\n" * 60, "function", "backends/planted.py:big"),
        (
            "class Own:\n    async def big(self):\n" + "        x = 0\n" * 60,
            "function",
            "backends/planted.py:Own.big",
        ),
    ],
)
def test_a_planted_size_is_found(tmp_path: Path, source: str, kind: str, name: str) -> None:
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "planted.py").write_text(source, encoding="utf-8")
    (found,) = bounds.over_bounds(tmp_path)
    assert (found.kind, found.name) == (kind, name)
