"""`check --server`: do the ASGI servers offer prepared frames, and does the application use them?

Only `__main__` imports this module. It prints its findings.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from .errors import ConfigurationError
from .servers.installed import InstalledServer, installed_servers
from .servers.running import RunningServer, look_at

__all__ = ["check_server"]

OFFERED, NOT_OFFERED = 0, 1
ANSWERS = {True: "prepared frames", False: "no prepared frames", None: "unknown"}


async def check_server(urls: Sequence[str], *, as_json: bool) -> int:
    """Print what the installed servers or, with URLs, the running ones offer.

    Returns:
        0 if one of the installed servers, or all running ones, offer prepared frames; else 1.

    Raises:
        ConfigurationError: a URL does not begin with ws:// or wss://.
    """
    for url in urls:
        if not url.startswith(("ws://", "wss://")):
            problem = "with --server, a URL is that of a running server: ws://... or wss://..."
            raise ConfigurationError(problem)
    servers: list[InstalledServer] | list[RunningServer]
    if urls:
        servers = [await look_at(url) for url in urls]
        ok, wrappers = all(server.offers_frames for server in servers), []
    else:
        servers = installed_servers()
        ok, wrappers = any(server.offers_frames for server in servers), await _wrappers()
    if as_json:
        listed = [dataclasses.asdict(server) for server in servers]
        print(json.dumps({"ok": ok, "servers": listed, "replaces_send": wrappers}))
    else:
        _print(servers, wrappers)
    return OFFERED if ok else NOT_OFFERED


def _print(servers: Sequence[InstalledServer | RunningServer], wrappers: list[str]) -> None:
    for server in servers:
        if isinstance(server, InstalledServer):
            name = f"{server.name} {server.version}"
        else:
            name = f"{server.url} "
        print(f"{name:<18}{ANSWERS[server.offers_frames]}: {server.advice}")
        if server.warning is not None:
            print(f"{'warning':<18}{server.warning}")
    if not servers:
        print("no ASGI server is installed in this environment")
    for wrapper in wrappers:
        print(f"{'middleware':<18}{wrapper} replaces `send`: no prepared frames behind it")


async def _wrappers() -> list[str]:
    """The middleware of ASGI_APPLICATION that replaces `send`, if Django is set up."""
    registry: Any = sys.modules.get("django.apps")
    if registry is None or not registry.apps.ready:
        return []
    from .integration.wrapped_send import of_project

    return await of_project()
