"""The endpoints of this process, by their owner names, on all event loops."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ...conf import Config
from ...forks import PerProcess

if TYPE_CHECKING:
    from .endpoint import Endpoint

__all__ = ["endpoints"]


class _Endpoints:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_owner: dict[str, Endpoint] = {}


class Registry:
    """The started endpoints of this process. Its methods may be called on any thread."""

    def __init__(self) -> None:
        self._state = PerProcess(_Endpoints)

    def add(self, endpoint: Endpoint) -> None:
        """Add an endpoint. Endpoints whose event loop is closed are forgotten."""
        state = self._state.current
        with state.lock:
            for owner, other in list(state.by_owner.items()):
                if other.loop.is_closed():
                    del state.by_owner[owner]
            state.by_owner[endpoint.owner] = endpoint

    def discard(self, endpoint: Endpoint) -> None:
        """Remove an endpoint."""
        state = self._state.current
        with state.lock:
            state.by_owner.pop(endpoint.owner, None)

    def get(self, owner: str | None) -> Endpoint | None:
        """The endpoint of this process with this name, or None."""
        if owner is None:
            return None
        endpoint = self._state.current.by_owner.get(owner)
        return None if endpoint is None or endpoint.loop.is_closed() else endpoint

    def alive(self, config: Config, prefix: str) -> list[str]:
        """The owners with this broker and prefix whose event loop runs."""
        state = self._state.current
        with state.lock:
            found = list(state.by_owner.values())
        return [
            endpoint.owner
            for endpoint in found
            if endpoint.hub.config == config
            and endpoint.options.prefix == prefix
            and endpoint.usable
            and endpoint.loop.is_running()
        ]


endpoints = Registry()
