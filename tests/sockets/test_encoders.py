"""`ws_encoder` and `ws_decoder` accept any function of the data, in every place to set them."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient

URL = "memory://encoders"


def dumps(data: Any, indent: int | None = None) -> str:
    return json.dumps(data, indent=indent)


def loads(*frames: Any) -> Any:
    return json.loads(*frames)


class Dumper:
    def __call__(self, data: Any) -> str:
        return json.dumps(data)

    def dump(self, data: Any) -> str:
        return json.dumps(data)


class Given(BaseSocketServer):
    """Answers with what it has decoded, so that both functions are needed."""

    config = URL

    async def connect(self) -> None:
        await self.async_subscribe("room")
        await self.async_send("ready")

    async def receive(self, data: Any) -> None:
        await self.async_send(data)


def method(self: Any, data: Any) -> Any:
    assert isinstance(self, Given)
    return json.dumps(data)


def method_with_default(self: Any, data: Any = None) -> Any:
    return method(self, data)


def method_of(this: Any, data: Any) -> Any:
    return method(this, data)


ENCODERS: dict[str, Any] = {
    "json.dumps": json.dumps,
    "function": dumps,
    "lambda": lambda data: json.dumps(data),
    "staticmethod": staticmethod(dumps),
    "classmethod": classmethod(lambda cls, data: json.dumps(data)),
    "partial": functools.partial(json.dumps, sort_keys=True),
    "object": Dumper(),
    "bound method": Dumper().dump,
    "method": method,
    "method with a default": method_with_default,
    "method without the name self": method_of,
    "partialmethod": functools.partialmethod(method),
}
DECODERS: dict[str, Any] = {
    "json.loads": json.loads,
    "variable arguments": loads,
    "lambda": lambda frame: json.loads(frame),
    "staticmethod": staticmethod(json.loads),
    "classmethod": classmethod(lambda cls, frame: json.loads(frame)),
    "partial": functools.partial(json.loads, parse_int=int),
    "written in C": operator.methodcaller("upper"),
    "method": lambda self, frame: json.loads(frame),
}


async def talks(app: Any) -> None:
    async with SocketClient(app) as client:
        assert await client.receive_json() == "ready"
        await client.send_text('"HELLO"')
        assert await client.receive() in ('"HELLO"', '"\\"HELLO\\""')
        await Broadcaster(URL).async_broadcast("room", {"a": 1})
        assert await client.receive_json() == {"a": 1}


@pytest.mark.parametrize("kind", ENCODERS)
async def test_an_encoder_in_the_class(kind: str) -> None:
    await talks(type("Encodes", (Given,), {"ws_encoder": ENCODERS[kind]}).as_asgi)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", DECODERS)
async def test_a_decoder_in_the_class(kind: str) -> None:
    await talks(type("Decodes", (Given,), {"ws_decoder": DECODERS[kind]}).as_asgi)  # type: ignore[attr-defined]


class Functions:
    """A mixin that is no socket class."""

    ws_encoder = dumps
    ws_decoder = json.loads


class Inherits(Functions, Given):  # type: ignore[misc]
    pass


class InheritsAgain(Inherits):
    pass


class Configures(Given):
    def configure(self) -> None:
        self.ws_encoder = dumps
        self.ws_decoder = json.loads


class PassesOn(Given):
    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        super().__init__(scope, receive, send, ws_encoder=dumps, ws_decoder=json.loads)


@pytest.mark.parametrize("kind", [Inherits, InheritsAgain, Configures, PassesOn])
async def test_functions_from_elsewhere(kind: type[Given]) -> None:
    await talks(kind.as_asgi)


async def test_functions_of_a_binary_format() -> None:
    class Packs(Given):
        ws_encoder = msgpack.packb
        ws_encoder_is_bytes = True
        ws_decoder = msgpack.unpackb

    pack: Callable[[Any], bytes] = msgpack.packb
    async with SocketClient(Packs.as_asgi) as client:
        assert await client.receive() == pack("ready")
        await client.send_bytes(pack({"a": 1}))
        assert await client.receive() == pack({"a": 1})
