"""Text of a client in the log is one line of bounded length, and there are few such lines."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.urls import path

from django_sockets import log
from django_sockets.integration import ProtocolTypeRouter, URLRouter
from django_sockets.log import FIELDS, LogThrottle, shown
from django_sockets.middleware import (
    BaseTokenAuthMiddleware,
    OriginMiddleware,
    SessionAuthMiddleware,
)
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient

LOGGER = logging.getLogger("django_sockets")
FORGED = "2026-11-28 ERROR root: forged"
TEXTS = {
    "line feed": f"/a\n{FORGED}",
    "carriage return": f"/a\r\n{FORGED}",
    "other line breaks": f"/a\x0b\x0c\x1c\x85\u2028\u2029{FORGED}",
    "colours": "/a\x1b[2J\x1b[31mred\x9b1A",
    "backspace and bell": "/a\x08\x08\x07\x7f\x00",
    "right to left": "/a\u202eevil\u2066\u200b",
    "long": "/" + "a" * 1024 * 1024,
    "long and bad": "/" + "\n" * 1024 * 1024,
    "formats": "/%s %d %(a)s {0} %",
}
MOST_CHARACTERS = 2100
REPEATS = 200
MOST_LINES = 10


class Room(BaseSocketServer):
    """Raises the error that a client asks for."""

    config = "memory://log-lines"

    async def receive(self, data: Any) -> None:
        verb, text = data
        if verb == "raise":
            raise ValueError(text)
        if verb == "subscribe":
            await self.async_subscribe(text)
        elif verb == "ask":
            await self.async_subscribe_for_client(text)
        elif verb == "broadcast":
            await self.async_broadcast(text, "data")

    async def error(self, exc: Exception) -> None:
        if "error" in str(exc):
            raise LookupError(str(exc))


class Guarded(Room):
    def authorize(self) -> None:
        raise LookupError(self.scope["path"])


class Tokens(BaseTokenAuthMiddleware):
    def get_user(self, token: str) -> Any:
        raise LookupError(token)


async def refused(app: Any, text: str, **headers: str) -> None:
    client = SocketClient(app, headers=headers)
    client.scope["path"] = text
    with pytest.raises(HandshakeRefused):
        await client.connect()


async def said(verb: str, text: str) -> None:
    async with SocketClient(Room.as_asgi, raise_errors=False) as socket:
        await socket.send_json([verb, text])
        await socket.send_json(["nothing", ""])


async def foreign_page(text: str) -> None:
    await refused(Room.as_asgi, text, origin="https://evil.example")


async def foreign_page_at_the_middleware(text: str) -> None:
    await refused(OriginMiddleware(Room.as_asgi), text, origin="https://evil.example")


async def bad_origin(text: str) -> None:
    origin = text.encode("latin-1", "ignore").decode("latin-1")
    await refused(Room.as_asgi, "/", origin=f"http://{origin}")


async def bad_host(text: str) -> None:
    host = text.encode("latin-1", "ignore").decode("latin-1")
    await refused(Room.as_asgi, "/", host=f"testserver{host}")


async def no_route(text: str) -> None:
    await refused(URLRouter([path("ws/", Room.as_asgi)]), text)


async def no_entry(text: str) -> None:
    await refused(ProtocolTypeRouter({}), text)


async def authorize(text: str) -> None:
    await refused(Guarded.as_asgi, text)


async def no_login(text: str) -> None:
    await refused(SessionAuthMiddleware(Room.as_asgi, require_user=True), text)


async def no_token(text: str) -> None:
    await refused(Tokens(Room.as_asgi, require_user=True), text)


async def token_that_fails(text: str) -> None:
    await refused(Tokens(Room.as_asgi), text, authorization="Token abc")


async def bad_subprotocol(text: str) -> None:
    client = SocketClient(Tokens(Room.as_asgi), subprotocols=[text])
    with pytest.raises(HandshakeRefused):
        await client.connect()


async def channel(text: str) -> None:
    await said("subscribe", text + "*")


async def channel_asked_for(text: str) -> None:
    await said("ask", text)


async def channel_of_a_broadcast(text: str) -> None:
    await said("broadcast", text + "*")


async def error_of_a_handler(text: str) -> None:
    await said("raise", text)


async def error_of_the_error_hook(text: str) -> None:
    await said("raise", f"error {text}")


async def odd_event(text: str) -> None:
    async with SocketClient(Room.as_asgi) as socket:
        await socket._to_app.put({"type": text})


Provoke = Callable[[str], Awaitable[None]]
WAYS: list[Provoke] = [
    foreign_page,
    foreign_page_at_the_middleware,
    bad_origin,
    bad_host,
    no_route,
    no_entry,
    authorize,
    no_login,
    no_token,
    token_that_fails,
    bad_subprotocol,
    channel,
    channel_asked_for,
    channel_of_a_broadcast,
    error_of_a_handler,
    error_of_the_error_hook,
    odd_event,
]


@pytest.fixture(autouse=True)
def throttles(monkeypatch: pytest.MonkeyPatch, django_project: None) -> None:
    """Log throttles as in a new process."""
    for module in [one for name, one in sys.modules.items() if name.startswith("django_sockets")]:
        for name in ("_throttle", "_failures"):
            throttle = getattr(module, name, None)
            if isinstance(throttle, LogThrottle):
                fresh = LogThrottle(LOGGER, 3600, throttle._burst)
                monkeypatch.setattr(module, name, fresh)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", TEXTS)
async def test_a_record_is_one_line_of_bounded_length(
    name: str, way: Provoke, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_sockets")
    await way(TEXTS[name])
    records = [record for record in caplog.records if record.name == "django_sockets"]
    assert records or way in (bad_origin, channel_of_a_broadcast)
    for record in records:
        message = record.getMessage()
        assert message.isprintable(), message[:300]
        assert len(message) < MOST_CHARACTERS
        for field in FIELDS:
            value = getattr(record, field)
            assert value is None or isinstance(value, (int, float)) or value.isprintable()
            assert len(str(value)) < MOST_CHARACTERS
        lines = logging.Formatter().format(record).split("\n")
        assert not [line for line in lines if line.startswith(FORGED[:10])]
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("way", "level", "status", "reason"),
    [
        (foreign_page, "WARNING", 403, "evil.example"),
        (foreign_page_at_the_middleware, "WARNING", 403, "evil.example"),
        (no_route, "INFO", 404, "no such route"),
        (no_login, "INFO", 403, "not logged in"),
        (no_token, "INFO", 401, "not logged in"),
    ],
)
async def test_a_refused_handshake_has_its_path_its_status_and_the_reason(
    way: Provoke, level: str, status: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_sockets")
    await way("/rooms/7/")
    (record,) = [one for one in caplog.records if one.name == "django_sockets"]
    values = record.__dict__
    assert (record.levelname, values["path"], values["status"]) == (level, "/rooms/7/", status)
    assert reason in values["reason"]
    assert values["template"] == "refused a websocket to %s: %s"


async def test_a_failed_handler_names_its_class_and_its_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await error_of_a_handler("broken")
    (record,) = [one for one in caplog.records if one.name == "django_sockets"]
    values = record.__dict__
    assert (values["socket"], values["reason"]) == ("Room", "broken")
    assert values["template"] == "%s: a handler failed"


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_client_cannot_flood_the_log(
    way: Provoke, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_sockets")
    for number in range(REPEATS):
        await way(f"/a{number}*\n")
    lines = [record for record in caplog.records if record.name == "django_sockets"]
    assert 1 <= len(lines) <= MOST_LINES


def test_every_module_logs_by_the_one_logger_that_is_filtered() -> None:
    assert any(isinstance(one, log._OneLine) for one in LOGGER.filters)
    for name, module in sys.modules.items():
        own = getattr(module, "logger", None) if name.startswith("django_sockets") else None
        assert own is None or own is LOGGER


def test_wrong_arguments_are_reported_by_the_handlers_as_ever(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    LOGGER.warning("%d", "no number")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/ws/", "'/ws/'"),
        ("a\r\nb", r"'a\r\nb'"),
        (b"\xff", r"b'\xff'"),
        (None, "None"),
        ("a" * 201, "'" + "a" * 200 + "'... (201 in all)"),
        (b"a" * 201, "b'" + "a" * 200 + "'... (201 in all)"),
        ([1] * 1000, "[" + "1, " * 66 + "1..."),
    ],
)
def test_what_is_shown_of_a_value(value: Any, text: str) -> None:
    assert shown(value) == text
