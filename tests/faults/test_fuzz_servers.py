"""Invalid bytes and frames through real servers do not affect other clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import pytest

from support.faults.processes import ServerProcess, serve

INPUTS = int(os.environ.get("DJANGO_SOCKETS_FUZZ_SERVER_INPUTS", "200"))
"""Connections for each server; 2,000 with `make fuzz`."""
AT_ONCE = 20

SOURCE = """
from django_sockets.sockets import BaseSocketServer

class Echo(BaseSocketServer):
    config = "memory://fuzz"
    allowed_origins = ["*"]
    max_message_bytes = 4096

    async def connect(self):
        await self.async_subscribe("room")

    async def receive(self, data):
        await self.async_send(repr(data))

application = Echo.as_asgi
"""
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

pytestmark = pytest.mark.timeout(120 + INPUTS / 5)


def frame(dice: random.Random) -> bytes:
    """A frame of a client, right or wrong in any part (RFC 6455, section 5.2)."""
    payload = dice.choice(
        [
            dice.randbytes(dice.randrange(200)),
            b'"text"',
            b'{"a": [1',
            b"\xff\xfe",
            b"[" * 3000,
            b'"' + b"x" * dice.choice((4000, 5000, 70_000)) + b'"',
            b"",
        ]
    )
    opcode = dice.choice((0, 1, 1, 1, 2, 2, 8, 9, 10, dice.randrange(16)))
    head = dice.choice((0x80, 0x80, 0x80, 0x00, 0xC0)) | opcode
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    mask = dice.randbytes(4)
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    whole = bytes([head]) + length + mask + masked
    if dice.random() < 0.2:  # One byte is another one.
        place = dice.randrange(len(whole))
        whole = whole[:place] + dice.randbytes(1) + whole[place + 1 :]
    return whole[: dice.randrange(1, len(whole) + 1)] if dice.random() < 0.1 else whole


async def one(server: ServerProcess, dice: random.Random) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    with contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
        if dice.random() < 0.9:
            writer.write(HANDSHAKE)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        for _ in range(dice.randrange(1, 6)):
            writer.write(frame(dice))
            await writer.drain()
        await asyncio.wait_for(reader.read(200), 0.05)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    "server_name", ["uvicorn", "uvicorn-frames", "hypercorn", "daphne", "granian"]
)
async def test_broken_frames_hurt_nobody_else(server_name: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("DJANGO_SOCKETS_FUZZ_SEED", random.randrange(1 << 30)))
    print(f"DJANGO_SOCKETS_FUZZ_SEED={seed}")
    dice = random.Random(seed)
    async with serve(server_name, SOURCE, tmp_path) as server:
        async with await server.connect() as neighbour:
            for start in range(0, INPUTS, AT_ONCE):
                many = min(AT_ONCE, INPUTS - start)
                await asyncio.gather(
                    *(one(server, random.Random(dice.random())) for _ in range(many))
                )
                await neighbour.send(f"{start}")
                assert await asyncio.wait_for(neighbour.recv(), 10) == f'"{start}"'
            assert server.process.poll() is None
            async with await server.connect() as newcomer:
                await newcomer.send("1")
                assert await asyncio.wait_for(newcomer.recv(), 10) == '"1"'
        ours = [line for line in server.printed.splitlines() if "/django_sockets/" in line]
        assert not ours, around(server.printed)


def around(printed: str) -> str:
    """The log where our own code is first in it."""
    place = printed.index("/django_sockets/")
    return printed[max(0, place - 2000) : place + 2000]
