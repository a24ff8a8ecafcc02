"""This package, with a class that is informed of losses."""

from __future__ import annotations

from collections.abc import Collection

import ours


class Socket(ours.Socket):
    async def gap(self, channels: Collection[str], reason: str) -> None:
        await self.async_send({"lost": sorted(channels), "reason": reason})


app = Socket.as_asgi
