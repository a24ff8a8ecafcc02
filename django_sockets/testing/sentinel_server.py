"""A sentinel process, for `sentinels`."""

from __future__ import annotations

from typing import Any

from .directives import arguments
from .servers import CacheServer

__all__ = ["SentinelServer"]

_CONFIG_FILE = "sentinel.conf"

# By default sentinels ask and tell each other every 1, 2 and 10 seconds, which is too slow for
# tests, and do nothing ("tilt") for 30 seconds after a pause. A replica may be promoted if it
# reported within five ping periods; it is asked every second while its primary is down.
_HURRY = {
    "info-period": 100,
    "ping-period": 300,
    "ask-period": 100,
    "publish-period": 200,
    "min-link-reconnect-period": 100,
    "tilt-period": 1000,
}


class SentinelServer(CacheServer):
    """A sentinel that watches no primary yet. It keeps its configuration across `kill`."""

    def start(self) -> None:
        """See `CacheServer.start`."""
        super().start()
        self.execute("SENTINEL", "DEBUG", *(word for pair in _HURRY.items() for word in pair))

    def _files(self) -> dict[str, bytes]:
        # The sentinel rewrites this file with its users; on the command line they would repeat.
        lines = []
        if self.username:
            lines += [f'user {self.username} on ">{_escaped(self.password)}" ~* &* +@all']
            lines += ["user default off"]
        elif self.password:
            lines += [f'requirepass "{_escaped(self.password)}"']
        return super()._files() | {_CONFIG_FILE: "".join(f"{line}\n" for line in lines).encode()}

    def _arguments(self) -> list[str]:
        options: dict[str, Any] = {"unix": False, "username": None, "password": None}
        rest = arguments(
            host=self.host, port=self.port, tls=bool(self._tls), config=self._config, **options
        )
        return [_CONFIG_FILE, "--sentinel", *rest]


def _escaped(text: str | None) -> str:
    return (text or "").replace("\\", "\\\\").replace('"', '\\"')
