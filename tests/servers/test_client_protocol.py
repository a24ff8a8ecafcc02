"""The client protocol on every server: with prepared frames, compressed frames and events."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from support.faults.processes import serve

ROOT = Path(__file__).resolve().parents[2]
V1 = "django-sockets.v1"
SOURCE = """
from django_sockets import Reject
from django_sockets.sockets import BaseSocketServer
from django_sockets.typed import on


class Room(BaseSocketServer):
    config = "memory://room"
    allowed_origins = ["*"]

    def authorize(self):
        if self.scope["path"] == "/staff":
            raise Reject(403)

    async def connect(self):
        await self.async_send({"state": 1})

    def may_subscribe(self, channel):
        return channel == "room"

    @on("say")
    async def say(self, message):
        await self.async_broadcast("room", message["data"])
        return len(message["data"])

    @on("bytes")
    async def bytes(self):
        await self.async_broadcast("room", bytes(1000))

    @on("leave")
    async def leave(self):
        await self.async_close(4100)

application = Room.as_asgi
"""


@pytest.mark.parametrize(
    "server_name", ["uvicorn", "uvicorn-frames", "hypercorn", "daphne", "granian"]
)
async def test_a_conversation_on_a_real_server(server_name: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    async with serve(server_name, SOURCE, tmp_path, PYTHONPATH=path) as server:
        for compression in (None, "deflate"):
            options: dict[str, Any] = {"subprotocols": [V1], "compression": compression}
            async with await server.connect(**options) as one, await server.connect() as raw:
                assert one.subprotocol == V1
                assert await raw.recv() == '{"state": 1}'
                assert "hello" in json.loads(await one.recv())
                assert json.loads(await one.recv()) == {"data": {"state": 1}}
                assert json.loads(await one.recv()) == {"ready": {}}
                await one.send('{"id": 1, "subscribe": [{"channel": "room"}]}')
                answer = {"id": 1, "ok": {"channels": [{"channel": "room"}]}}
                assert json.loads(await one.recv()) == answer
                text = "grün" * 1000
                await one.send(json.dumps({"id": 2, "message": {"type": "say", "data": text}}))
                await one.send('{"ping": 3}')
                got = [json.loads(await asyncio.wait_for(one.recv(), 10)) for _ in range(3)]
                assert {"id": 2, "ok": 4000} in got
                assert {"channel": "room", "data": text} in got
                assert {"pong": 3} in got
                await one.send('{"message": {"type": "bytes"}}')
                data = await asyncio.wait_for(one.recv(), 10)
                assert data == b'\x00\x12{"channel":"room"}' + bytes(1000)
                await one.send('{"message": {"type": "leave"}}')
                assert json.loads(await one.recv()) == {"bye": {"code": 4100, "again": False}}
                with pytest.raises(ConnectionClosed) as closed:
                    await one.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 4100
        async with await server.connect("/staff", subprotocols=[V1]) as refused:
            assert json.loads(await refused.recv()) == {"bye": {"code": 4403, "again": False}}
            with pytest.raises(ConnectionClosed) as closed:
                await refused.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4403
        assert "Traceback" not in server.printed
