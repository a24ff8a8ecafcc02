"""Lua scripts in a cluster: each on the server that owns the slot of its keys.

A call that certainly was not executed (MOVED, ASK, TRYAGAIN, no connection) is made again on the
new owner of the slot, until `publish_timeout_seconds` have passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ...errors import ConnectError
from ...url import Address, BrokerURL
from ..client.commands import slot_of
from ..client.parser import ReplyError
from ..client.pipeline import NotSent, Pipeline
from ..client.routes import Route, asked_at, moved_to
from ..client.script_runner import RETRY_SECONDS, ScriptRunner
from ..client.scripts import Script, is_error, not_sent

__all__ = ["ClusterScripts"]


class ClusterScripts(ScriptRunner):
    """Runs scripts in a cluster.

    Args:
        route_for, refresh, on_moved: see `Router`.
        route_at: returns the route of a server by its address.
        primaries: returns the connections to all servers that own slots, after a refresh.
    """

    def __init__(
        self,
        url: BrokerURL,
        *,
        route_for: Callable[[int], Route | None],
        route_at: Callable[[Address], Route],
        refresh: Callable[[], Awaitable[None]],
        on_moved: Callable[[int, Address], None],
        primaries: Callable[[], Iterable[Pipeline]],
    ) -> None:
        super().__init__(url, self._no_pipeline, primaries)
        self._route_for = route_for
        self._route_at = route_at
        self._refresh = refresh
        self._on_moved = on_moved

    @staticmethod
    def _no_pipeline(name: bytes) -> Pipeline:
        raise not_sent("no server of the cluster serves its slot")

    async def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[bytes],
        on_asked: Callable[[Route], None] | None = None,
    ) -> Any:
        """See `ScriptRunner.run`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.url.options.publish_timeout_seconds
        slot = slot_of(keys[0])
        target: Route | None = None
        source: Route | None = None
        pause = 0.0
        error: Exception
        while True:
            route = target or self._route_for(slot)
            asking, target = target is not None, None
            if route is None:
                error = not_sent("no server of the cluster serves its slot")
            else:
                try:
                    reply = await self.attempt(route.pipeline, script, keys, args, asking=asking)
                except NotSent as exc:
                    error = exc
                else:
                    if not isinstance(reply, ReplyError):
                        if asking and source is not None and on_asked is not None:
                            on_asked(source)
                        return reply
                    error = reply
                    target = self._redirection(reply, route)
                    if target is not None:
                        source = route
                        continue
                    if not is_error(reply, "MOVED", "TRYAGAIN", "READONLY", "CLUSTERDOWN", "ASK"):
                        raise reply
            if loop.time() + pause >= deadline:
                raise error
            await asyncio.sleep(pause)
            pause = RETRY_SECONDS
            if not is_error(error, "TRYAGAIN"):
                await self._refreshed()

    def _redirection(self, error: ReplyError, route: Route) -> Route | None:
        """The server that an ASK names; a MOVED is applied to the slot map."""
        moved = moved_to(error, route.address)
        if moved is not None:
            self._on_moved(*moved)
            return None
        asked = asked_at(error, route.address)
        return None if asked is None else self._route_at(asked)

    async def _refreshed(self) -> None:
        try:
            await self._refresh()
        except ConnectError:
            await asyncio.sleep(RETRY_SECONDS)

    async def each_server(self, command: Callable[[Pipeline], Any]) -> None:
        """See `ScriptRunner.each_server`."""
        try:
            await self._refresh()
        except ConnectError as exc:
            raise not_sent(exc.problem, exc) from exc
        await super().each_server(command)
