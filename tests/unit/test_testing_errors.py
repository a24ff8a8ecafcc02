"""Errors of an application's code are raised in the test that runs it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from django_sockets import NotAllowed
from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import HandshakeRefused, SocketClient, SocketClosed, SyncSocketClient
from django_sockets.typed import on

URL = "memory://testing-errors"


class Broken(Exception):
    pass


class Base(BaseSocketServer):
    config = URL

    async def connect(self) -> None:
        await self.async_subscribe("room")
        await self.async_send("ready")

    async def receive(self, data: Any) -> None:
        await self.async_send(data)


def plain(self: Any, *_: Any) -> None:
    raise Broken


async def coroutine(self: Any, *_: Any) -> None:
    raise Broken


KINDS = {"def": plain, "async def": coroutine}
HOOKS: dict[str, dict[str, Any]] = {
    "connect": {"frame": None},
    "receive": {"frame": "anything"},
    "said": {"frame": {"type": "said"}},
    "decode_error": {"frame": None, "text": "no JSON"},
    "async_handle_received_broadcast": {"frame": "broadcast"},
    "may_subscribe": {"frame": "ask"},
}
# A broadcast may come only after the client has left.
AT_THE_END = [hook for hook in HOOKS if hook != "async_handle_received_broadcast"]


def made(hook: str, kind: str, **more: Any) -> Any:
    async def receive(self: Any, data: Any) -> None:
        if data == "broadcast":
            await Broadcaster(URL).async_broadcast("room", 1)
        elif data == "ask":
            await self.async_subscribe_for_client("hall")

    function = coroutine if hook.startswith("async_") else KINDS[kind]
    if hook == "said":
        original = function
        # A function of its own, because the mark stays on it.
        function = on("said")(
            (lambda self, data: original(self, data)) if kind == "def" else _async_said
        )
    return type("Made", (Base,), {"receive": receive, hook: function, **more}).as_asgi  # type: ignore[attr-defined]


async def _async_said(self: Any, data: Any) -> None:
    raise Broken


async def drive(client: SocketClient, hook: str) -> None:
    if hook != "connect":
        assert await client.receive_json() == "ready"
    act = HOOKS[hook]
    if act["frame"] is not None:
        await client.send_json(act["frame"])
    elif "text" in act:
        await client.send_text(act["text"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", HOOKS)
async def test_waiting_for_a_message_raises_what_a_handler_has_raised(hook: str, kind: str) -> None:
    async with SocketClient(made(hook, kind)) as client:
        await drive(client, hook)
        with pytest.raises(Broken):
            await client.receive_json()
        assert client.close_code == 1011
        assert [type(error) for error in client.errors] == [Broken]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", [*AT_THE_END, "disconnect"])
async def test_a_test_that_does_not_wait_gets_it_at_the_end(hook: str, kind: str) -> None:
    async def leaves() -> None:
        async with SocketClient(made(hook, kind)) as client:
            if hook == "disconnect":
                assert await client.receive_json() == "ready"
            else:
                await drive(client, hook)

    with pytest.raises(Broken):
        await leaves()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", HOOKS)
async def test_raising_is_turned_off_by_an_argument(hook: str, kind: str) -> None:
    async with SocketClient(made(hook, kind), raise_errors=False) as client:
        await drive(client, hook)
        with pytest.raises(SocketClosed) as closed:
            await client.receive()
        assert closed.value.code == 1011
    assert [type(error) for error in client.errors] == [Broken]


async def test_a_test_that_expects_the_close_gets_the_code_and_no_error() -> None:
    async with SocketClient(made("receive", "def")) as client:
        await client.send_json(1)
        assert await client.receive_close() == 1011


async def test_a_fault_of_the_client_is_not_reported_as_an_error() -> None:
    async def receive(self: Any, data: Any) -> None:
        raise NotAllowed("on purpose")

    async with SocketClient(type("Made", (Base,), {"receive": receive}).as_asgi) as client:  # type: ignore[attr-defined]
        await client.send_json(1)
        assert await client.receive_close() == 1008
    assert client.errors == []


async def test_an_error_method_that_goes_on_has_dealt_with_it() -> None:
    async def error(self: Any, exc: Exception) -> None:
        await self.async_send("sorry")

    async with SocketClient(made("receive", "def", error=error)) as client:
        assert await client.receive_json() == "ready"
        await client.send_json(1)
        assert await client.receive_json() == "sorry"
    assert client.errors == []


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_method_that_calls_the_base_one_has_not(kind: str) -> None:
    def goes_on(self: Any, exc: Exception) -> None:
        BaseSocketServer.error(self, exc)

    async def awaits(self: Any, exc: Exception) -> None:
        await BaseSocketServer.error(self, exc)

    error = goes_on if kind == "def" else awaits
    async with SocketClient(made("receive", "def", error=error)) as client:
        assert await client.receive_json() == "ready"
        await client.send_json(1)
        with pytest.raises(Broken):
            await client.receive()


async def test_an_error_method_that_fails_raises_that() -> None:
    async def error(self: Any, exc: Exception) -> None:
        raise LookupError("of error")

    async with SocketClient(made("receive", "def", error=error)) as client:
        await client.send_json(1)
        assert await client.receive_json() == "ready"
        with pytest.raises(LookupError, match="of error"):
            await client.receive()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handshake_refused_by_an_error_names_it(kind: str) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        await SocketClient(made("authorize", kind)).connect()
    assert refused.value.status == 403
    assert isinstance(refused.value.__cause__, Broken)


async def test_a_failing_test_keeps_its_own_error() -> None:
    async def fails() -> None:
        async with SocketClient(made("disconnect", "def")):
            raise KeyError("of the test")

    with pytest.raises(KeyError):
        await fails()


@pytest.mark.parametrize("hook", HOOKS)
def test_plain_tests_get_it_too(hook: str) -> None:
    with SyncSocketClient(made(hook, "def")) as client:
        if client._loop is not None:
            asyncio.run_coroutine_threadsafe(drive(client._client, hook), client._loop).result(5)
        with pytest.raises(Broken):
            json.loads(client.receive())
        assert len(client.errors) == 1
    with SyncSocketClient(made(hook, "def"), raise_errors=False) as client:
        if client._loop is not None:
            asyncio.run_coroutine_threadsafe(drive(client._client, hook), client._loop).result(5)
        assert client.receive_close() == 1011


def test_plain_tests_get_it_at_the_end() -> None:
    client = SyncSocketClient(made("disconnect", "def"))
    client.connect()
    with pytest.raises(Broken):
        client.close()
