"""Writes, sends, pings and closes in any order: whole frames, in order, none after a close."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
import sys
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close, Frame, Opcode

from django_sockets.delivery import frames
from django_sockets.servers.uvicorn import WebSocketProtocol
from support.frame_parser import CLOSE, PING, PONG, parse
from support.raw_server import Peer, Peers, run_on, serving, soon

SCHEDULES = int(os.environ.get("DJANGO_SOCKETS_SCHEDULES", "10000"))
SEED = int(os.environ.get("DJANGO_SOCKETS_SCHEDULES_SEED", "20261"))
NETWORK_SCHEDULES = 60
WINDOW_BITS = 12
HIGH_WATER_BYTES = 4_000
LARGEST_WRITE_BYTES = 3 * 3_000
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
)
COMPRESSION = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


class Transport(asyncio.Transport):
    """A transport whose client reads when the schedule says so."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = bytearray()
        self.unread_bytes = 0
        self.most_unread_bytes = 0
        self.paused = self.closing = self.lost = False
        self.reads = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}.get(name, default)

    def write(self, data: Any) -> None:
        assert not self.lost, "written after the connection was lost"
        self.written += data
        if self.reads:
            return
        self.unread_bytes += len(data)
        self.most_unread_bytes = max(self.most_unread_bytes, self.unread_bytes)
        if self.unread_bytes > HIGH_WATER_BYTES and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def read_all(self) -> None:
        self.reads, self.unread_bytes = True, 0
        if self.paused:
            self.paused = False
            self.protocol.resume_writing()
        if self.closing:
            self.lose(None)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if self.reads:
                asyncio.get_running_loop().call_soon(self.lose, None)

    def abort(self) -> None:
        self.lose(ConnectionResetError())

    def lose(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = self.closing = True
            self.protocol.connection_lost(exc)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Schedule:
    """One connection, the random steps on it, and what the model expects of them."""

    def __init__(self, config: uvicorn.Config, chance: random.Random) -> None:
        self.chance = chance
        self.transport = Transport()
        self.protocol: Any = WebSocketProtocol(config, ServerState(), {})
        self.transport.protocol = self.protocol
        self.bits = WINDOW_BITS if chance.random() < 0.5 else 0
        self.expected: list[bytes] = []
        self.head = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.aborted = self.close_received = False
        self.number = 0

    async def run(self, peers: Peers) -> None:
        self.protocol.connection_made(self.transport)
        self.protocol.data_received(HANDSHAKE % (COMPRESSION if self.bits else b""))
        self.peer = await peers.get()
        assert self.peer.frames["deflate"] == self.bits
        self.head = self.transport.written.index(b"\r\n\r\n") + 4
        for _ in range(self.chance.randint(5, 25)):
            self.chance.choice(STEPS)(self)
            if self.chance.random() < 0.6:
                await asyncio.sleep(0)
        await self.end()

    def message(self) -> bytes:
        self.number += 1
        return b"%d " % self.number + b"x" * self.chance.choice((0, 3, 120, 126, 600, 2_900))

    def output(self) -> list[Any]:
        found, rest = parse(bytes(self.transport.written[self.head :]), self.bits)
        assert rest == b"", "a torn frame"
        return found

    def is_open(self) -> bool:
        """By what the client sees, and not by what the server thinks."""
        closed = any(frame.opcode == CLOSE for frame in self.output())
        return not (closed or self.close_received or self.transport.closing)

    # Steps

    def write(self) -> None:
        messages = [self.message() for _ in range(self.chance.randint(1, 3))]
        data = b""
        for message in messages:
            if self.bits and self.chance.random() < 0.5:
                deflated = frames.deflate(message, self.bits)
                data += frames.frame(frames.TEXT, deflated, compressed=True)
            else:
                data += self.chance.choice((frames.text_frame, frames.binary_frame))(message)
        before = len(self.transport.written)
        may_take = self.is_open() and not self.transport.paused
        assert self.peer.write(data) is may_take
        assert self.transport.written[before:] == (data if may_take else b"")
        if may_take:
            self.expected += messages

    def send(self) -> None:
        self.start(self.do_send(self.message()))

    async def do_send(self, message: bytes) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # It is closed, or `close` was sent.
            await self.peer.send(message.decode())
            self.expected.append(message)

    def drain(self) -> None:
        self.start(self.do_drain())

    async def do_drain(self) -> None:
        try:
            await self.peer.drain()
        except OSError:
            assert not self.is_open()
        else:
            assert self.is_open()
            assert not self.transport.paused

    def close(self) -> None:
        self.start(self.do_close())

    async def do_close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            await self.peer.close(4000)

    def keepalive_ping(self) -> None:
        if self.protocol.ping_timer is not None:
            self.protocol.ping_timer.cancel()
            self.protocol.send_keepalive_ping()

    def from_client(self, opcode: Opcode, payload: bytes) -> None:
        if not self.transport.lost and not self.close_received:
            self.protocol.data_received(Frame(opcode, payload).serialize(mask=True))

    def client_pings(self) -> None:
        self.from_client(Opcode.PING, b"are you there")

    def client_sends(self) -> None:
        self.from_client(Opcode.TEXT, b"hello")

    def client_closes(self) -> None:
        self.from_client(Opcode.CLOSE, Close(4001, "").serialize())
        self.close_received = True

    def client_stops_reading(self) -> None:
        self.transport.reads = False

    def client_reads(self) -> None:
        self.transport.read_all()

    def client_breaks_off(self) -> None:
        self.aborted = True
        self.transport.abort()

    def server_stops(self) -> None:
        if self.is_open():  # uvicorn 0.54 raises InvalidState if the client has closed already.
            self.protocol.shutdown()

    def start(self, step: Any) -> None:
        self.tasks.append(asyncio.ensure_future(step))

    # The end

    async def end(self) -> None:
        self.transport.read_all()
        for task in self.tasks:
            await soon(task)
        if not self.transport.closing:
            self.transport.abort()
        await soon(self.peer.ended)
        for _ in range(3):
            await asyncio.sleep(0)
        found = self.output()
        data = [frame.payload for frame in found if frame.opcode not in (CLOSE, PING, PONG)]
        assert data == self.expected
        closes = [at for at, frame in enumerate(found) if frame.opcode == CLOSE]
        # A pong may follow the server's close frame: the close handshake is not complete yet.
        after = found[closes[0] + 1 :] if closes else []
        assert {frame.opcode for frame in after} <= {PONG}
        bound = HIGH_WATER_BYTES + LARGEST_WRITE_BYTES + 25 * 40
        assert self.transport.most_unread_bytes <= bound
        assert not self.peer.write(frames.text_frame(b"too late"))


STEPS = (
    *(Schedule.write,) * 8,
    *(Schedule.send,) * 5,
    *(Schedule.drain,) * 3,
    *(Schedule.client_stops_reading,) * 3,
    *(Schedule.client_reads,) * 3,
    *(Schedule.client_pings,) * 2,
    *(Schedule.client_sends,) * 2,
    *(Schedule.keepalive_ping,) * 2,
    Schedule.close,
    Schedule.client_closes,
    Schedule.client_breaks_off,
    Schedule.server_stops,
)


def test_random_schedules_agree_with_the_model() -> None:
    peers = Peers()

    async def main() -> None:
        config = uvicorn.Config(peers, ws=WebSocketProtocol, log_config=None, log_level="warning")
        config.load()
        for number in range(SCHEDULES):
            seed = SEED + number
            try:
                await Schedule(config, random.Random(seed)).run(peers)
            except BaseException as exc:
                message = f"DJANGO_SOCKETS_SCHEDULES=1 DJANGO_SOCKETS_SCHEDULES_SEED={seed}"
                raise AssertionError(message) from exc

    run_on("asyncio", main)


# The same over the network, where the kernel and the event loop decide what is interleaved.

SERVER_STEPS = ("write", "write", "write", "send", "send", "drain", "pause")
CLIENT_STEPS = ("read", "read", "read", "ping", "send", "stop", "pause")


async def serve_at_random(peer: Peer, chance: random.Random, sent: list[bytes]) -> None:
    """Write and send until the connection has ended, or close it after some steps."""
    bits = peer.frames["deflate"]
    for number in range(chance.randint(10, 60)):
        message = b"%d " % number + b"x" * chance.choice((0, 120, 600, 70_000))
        match chance.choice(SERVER_STEPS):
            case "write":
                data = frames.text_frame(message)
                if bits and chance.random() < 0.5:
                    data = frames.frame(frames.TEXT, frames.deflate(message, bits), compressed=True)
                while not peer.write(data):
                    await peer.drain()
                sent.append(message)
            case "send":
                await peer.send(message.decode())
                sent.append(message)
            case "drain":
                await peer.drain()
            case _:
                await asyncio.sleep(0)
    await peer.close(4000)


async def read_on(client: ClientConnection, got: list[bytes]) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            got.append((await client.recv()).encode())


async def one_connection(url: str, peers: dict[str, Peer], name: str, context: Any) -> None:
    """One client. It reads, pings and sends at random; then it closes, breaks off or reads on."""
    chance = random.Random(name)
    compression = chance.choice((None, "deflate"))
    end = chance.choice(("close", "break off", "read on", "read on"))
    sent: list[bytes] = []
    got: list[bytes] = []
    options: dict[str, Any] = {"max_size": None, "proxy": None, "ssl": context}
    # A client with a full queue reads neither a close frame nor the end of the connection.
    options["max_queue"] = None if end == "close" else 4
    options["close_timeout"] = None if end == "close" else 0.1
    async with connect(f"{url}{name}", compression=compression, **options) as client:
        serving_it = asyncio.ensure_future(serve_at_random(peers[name], chance, sent))
        with contextlib.suppress(ConnectionClosed):
            for _ in range(chance.randint(0, 40)):
                match chance.choice(CLIENT_STEPS):
                    case "read":
                        got.append((await client.recv()).encode())
                    case "ping":
                        await client.ping()
                    case "send":
                        await client.send("hello")
                    case "stop":
                        await asyncio.sleep(0.02)
                    case _:
                        await asyncio.sleep(0)
        if end == "break off":
            client.transport.abort()
        elif end == "close":
            await soon(client.close(4001))
        else:
            await soon(read_on(client, got))
        with contextlib.suppress(OSError, RuntimeError):  # uvicorn: the client has left.
            await soon(serving_it)
    # 1002 or 1007 would mean that the client has met a frame that is wrong.
    codes = {"close": {4001, 4000}, "read on": {4000}, "break off": {1006, 4000}}
    assert client.close_code in codes[end]
    assert got == (sent if end == "read on" else sent[: len(got)])


@pytest.mark.parametrize("kind", ["asyncio", "uvloop", "asyncio-tls", "uvloop-tls"])
def test_random_schedules_over_the_network(
    kind: str, certificate: tuple[dict[str, Any], ssl.SSLContext]
) -> None:
    loop, _, tls = kind.partition("-")
    if kind == "asyncio-tls" and sys.version_info < (3, 11):
        pytest.skip("there the client fails: resume_reading raises after the end of its TLS")
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    peers: dict[str, Peer] = {}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        peer = Peer(scope, receive, send)
        peers[scope["path"].strip("/")] = peer
        await send({"type": "websocket.accept"})
        await peer.serve()

    async def main() -> None:
        more, context = certificate if tls else ({}, None)
        async with serving(application, ws_ping_interval=0.01, **more) as (url, _):
            for start in range(0, NETWORK_SCHEDULES, 20):
                names = [f"{SEED}-{number}" for number in range(start, start + 20)]
                await asyncio.gather(*(one_connection(url, peers, name, context) for name in names))

    run_on(loop, main)
