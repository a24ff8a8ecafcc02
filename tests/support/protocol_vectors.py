"""Runs the conversations of tests/client/vectors.json against the server side of the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from django_sockets import Reject, RequestError
from django_sockets.history import Position
from django_sockets.hub.hub import Hub
from django_sockets.runtime import shared_hub
from django_sockets.signed_channels import channel_token
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient, SocketClosed
from django_sockets.typed import on

__all__ = ["CONVERSATIONS", "FakeTimeLoop", "Vectors", "application"]

PROTOCOL = "django-sockets.v1"
FILE = Path(__file__).resolve().parents[1] / "client" / "vectors.json"
CONVERSATIONS: list[dict[str, Any]] = [
    one
    for one in json.loads(FILE.read_text(encoding="utf-8"))["conversations"]
    if "server" in one.get("sides", ["server"])
]


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time can be advanced."""

    ahead_seconds = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_seconds

    async def advance(self, seconds: float) -> None:
        """Let time pass, and the timers that are due then run."""
        self.ahead_seconds += seconds
        for _ in range(5):
            await asyncio.sleep(0)


class Say(msgspec.Struct):
    text: str


def application(source: dict[str, Any], path: str) -> type[BaseSocketServer]:
    """The application that the vectors describe."""

    class Application(BaseSocketServer):
        config = source
        idle_timeout_seconds = 60 if path == "/pong" else None
        finished = asyncio.Event()
        sockets: list[Any] = []  # noqa: RUF012

        async def authorize(self) -> None:
            if path in ("/login", "/staff"):
                raise Reject(401 if path == "/login" else 403)

        async def connect(self) -> None:
            self.sockets.append(self)
            if path == "/welcome":
                await self.async_subscribe("news")
                await self.async_send({"welcome": True})

        def may_subscribe(self, channel: str) -> bool:
            return channel.startswith(("room:", "kept:"))

        @on("echo")
        async def echo(self, message: dict[str, Any]) -> Any:
            return message["value"]

        @on("wait")
        async def wait(self, message: dict[str, Any]) -> Any:
            await self.finished.wait()
            return message["value"]

        @on("say")
        async def say(self, message: Say) -> None:
            await self.async_broadcast("room:1", {"text": message.text})

        @on("fail")
        def fail(self) -> None:
            raise ValueError("the inside of the application")

        @on("buy")
        def buy(self) -> None:
            raise RequestError("sold_out", "The last seat was sold.")

        @on("busy")
        async def busy(self) -> None:
            raise RequestError("busy", "Try again.", temporary=True, after_seconds=3)

    return Application


class Vectors:
    """One conversation with one application."""

    def __init__(
        self, conversation: dict[str, Any], config: dict[str, Any], prepared_frames: bool
    ) -> None:
        self.conversation = conversation
        self.app = application(config, conversation.get("path", "/"))
        self.client = SocketClient(
            self.app.as_asgi,
            conversation.get("path", "/"),
            subprotocols=["other", PROTOCOL],
            prepared_frames=prepared_frames,
            raise_errors=False,
        )
        self.positions = {"GONE": str(Position(bytes(8), 7, bytes(16)))}
        self.tokens = {
            name: channel_token(
                token["channel"],
                user=token.get("user"),
                expires_seconds=token["expires_seconds"],
                presence=token.get("presence", False),
            )
            for name, token in conversation.get("tokens", {}).items()
        }

    async def run(self) -> None:
        async with self.client as client:
            assert client.subprotocol == PROTOCOL
            for number, step in enumerate(self.conversation["steps"]):
                try:
                    await self.step(client, step)
                except (AssertionError, SocketClosed) as exc:
                    raise AssertionError(f"step {number}: {step}") from exc
            if not any("close" in step for step in self.conversation["steps"]):
                assert await client.receive_nothing()
        assert client.errors == [] or "fail" in json.dumps(self.conversation["steps"])

    async def step(self, client: SocketClient, step: dict[str, Any]) -> None:
        if "do" in step:
            await self.do(step["do"])
        elif "advance_seconds" in step:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, FakeTimeLoop)
            await loop.advance(step["advance_seconds"])
        elif step["from"] == "client":
            text = step["text"] if "text" in step else json.dumps(self.filled_in(step["frame"]))
            await client.send_text(text)
        elif "close" in step:
            with pytest.raises(SocketClosed) as closed:
                await client.receive()
            assert closed.value.code == step["close"]
        elif "binary" in step:
            data = await client.receive()
            assert isinstance(data, bytes)
            size = int.from_bytes(data[:2], "big")
            assert json.loads(data[2 : 2 + size]) == step["binary"]["header"]
            assert data[2 + size :].hex() == step["binary"]["hex"]
        else:
            frame = await client.receive_json()
            wanted = step["frame"]
            for path in step.get("any", ()):
                copy_value(wanted, frame, path.split("."))
            assert frame == wanted

    def filled_in(self, value: Any) -> Any:
        """Real tokens and positions in place of their names."""
        if isinstance(value, dict):
            return {key: self.filled_in(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.filled_in(item) for item in value]
        names = {**self.tokens, **self.positions}
        return names.get(value, value) if isinstance(value, str) else value

    async def do(self, action: dict[str, Any]) -> None:
        socket = self.app.sockets[0]  # type: ignore[attr-defined]
        hub: Hub = shared_hub(socket._connection.config)
        data = bytes.fromhex(action["hex"]) if "hex" in action else action.get("data")
        if "broadcast" in action:
            await socket.async_broadcast(action["broadcast"], data)
            if "remember" in action:
                self.positions[action["remember"]] = await hub.position(action["broadcast"])
        elif "send" in action:
            await socket.async_send(action["send"])
        elif "send_hex" in action:
            await socket.async_send(bytes.fromhex(action["send_hex"]))
        elif "gap" in action:
            hub.lost(action["gap"], action["reason"])
        elif "unsubscribe" in action:
            await socket.async_unsubscribe(action["unsubscribe"])
        elif "track" in action:
            key, info, entry = action["key"], action["info"], action.get("entry")
            await hub.track(action["track"], key, info, entry=entry)
        elif "untrack" in action:
            await hub.untrack(action["untrack"], action["entry"])
        elif "finish_waiting" in action:
            self.app.finished.set()  # type: ignore[attr-defined]
        elif "close" in action:
            with contextlib.suppress(SocketClosed):
                await socket.async_close(action["close"])
        elif "drain" in action:
            self.draining = asyncio.create_task(hub.drain(1))
        else:
            raise ValueError(action)


def copy_value(wanted: Any, frame: Any, path: list[str]) -> None:
    """Take over the value of a frame where only its type matters."""
    for key in path[:-1]:
        wanted, frame = at(wanted, key), at(frame, key)
    last: Any = int(path[-1]) if isinstance(wanted, list) else path[-1]
    assert type(frame[last]) is type(wanted[last]), (frame, path)
    wanted[last] = frame[last]


def at(value: Any, key: str) -> Any:
    return value[int(key) if isinstance(value, list) else key]
