"""Code as applications write it. tests/unit/test_user_types.py runs mypy on it."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from django_sockets import Reject
from django_sockets.sockets import BaseSocketServer
from django_sockets.typed import on


class Said(msgspec.Struct):
    text: str


class Plain(BaseSocketServer):
    config = "redis://localhost"
    allowed_origins = ("https://app.example.com",)
    subprotocol = "chat.v1"
    message_type = Said
    ws_encoder_is_bytes = True
    overflow = "drop_oldest"
    rate_limit_per_second = 5

    def configure(self) -> None:
        self.hosts = [{"address": "redis://localhost"}]
        self.ws_encoder = json.dumps
        self.ws_decoder = json.loads

    def authorize(self) -> bool:
        raise Reject(403)

    def connect(self) -> None:
        self.subscribe("room")

    def receive(self, message: Said) -> None:
        self.broadcast("room", message.text)

    def disconnect(self) -> None:
        super().disconnect()

    def error(self, error: Exception) -> None:
        super().error(error)

    def decode_error(self, error: Exception) -> None:
        super().decode_error(error)

    def gap(self, names: Sequence[str], why: str) -> None:
        pass

    def may_subscribe(self, name: str) -> bool:
        return name.startswith("public:")


class Coroutines(BaseSocketServer):
    hosts = ({"address": "redis://localhost"},)
    ws_encoder = json.dumps
    ws_decoder = json.loads

    async def authorize(self) -> None:
        pass

    async def connect(self) -> None:
        await self.async_subscribe("room")

    async def receive(self, data: dict[str, Any]) -> None:
        await self.async_send(data)

    async def disconnect(self) -> None:
        await self.async_broadcast("room", "left")

    async def error(self, exc: Exception) -> None:
        await super().error(exc)

    async def decode_error(self, exc: Exception) -> None:
        await super().decode_error(exc)

    async def gap(self, channels: Sequence[str], reason: str) -> None:
        pass

    async def may_subscribe(self, channel: str) -> bool:
        return True

    async def async_handle_received_broadcast(self, name: str, message: Any) -> None:
        await super().async_handle_received_broadcast(name, message)

    @on("say")
    async def said(self, message: Said) -> None:
        pass


class WithCode(BaseSocketServer):
    ws_encoder = functools.partial(json.dumps, indent=1)
    ws_decoder = staticmethod(json.loads)

    def disconnect(self, code: int) -> None:
        super().disconnect(code)


class WithOtherCode(BaseSocketServer):
    async def disconnect(self, close_code: int = 1000) -> None:
        pass


class WithMethods(BaseSocketServer):
    def ws_encoder(self, data: Any) -> str:
        return json.dumps(data)

    def ws_decoder(self, frame: str | bytes) -> Any:
        return json.loads(frame)


application = [Plain.as_asgi, Coroutines.as_asgi()]
