"""Applications of the published version 3 find all names, arguments and hooks that they use."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from typing import Any

import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient, override_broker

IMPORTS = [
    ("django_sockets.sockets", "BaseSocketServer"),
    ("django_sockets.broadcaster", "Broadcaster"),
    ("django_sockets.middleware", "SessionAuthMiddleware"),
    ("django_sockets.middleware", "DRFTokenAuthMiddleware"),
    ("django_sockets.middleware", "BaseTokenAuthMiddleware"),
    ("django_sockets.utils", "ProtocolTypeRouter"),
    ("django_sockets.utils", "URLRouter"),
    ("django_sockets.utils", "run_in_thread"),
]


@pytest.mark.parametrize(("module", "name"), IMPORTS)
def test_a_published_name_is_imported_from_where_it_was(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))


PARAMETERS = {
    BaseSocketServer.__init__: "scope receive send config hosts ws_encoder ws_encoder_is_bytes"
    " ws_decoder subprotocol",
    BaseSocketServer.configure: "",
    BaseSocketServer.connect: "",
    BaseSocketServer.receive: "data",
    BaseSocketServer.disconnect: "code",
    BaseSocketServer.async_handle_received_broadcast: "channel data",
    BaseSocketServer.async_receive_broadcast: "",
    BaseSocketServer.start_listeners: "",
    BaseSocketServer.async_start_listeners: "",
    Broadcaster.__init__: "config hosts loop",
}


@pytest.mark.parametrize("function", PARAMETERS, ids=lambda function: function.__qualname__)
def test_a_published_signature_still_takes_its_arguments(function: Any) -> None:
    found = " ".join(list(inspect.signature(function).parameters)[1:])
    assert found == PARAMETERS[function]


def parameters(function: Any) -> list[tuple[str, object]]:
    found = inspect.signature(function).parameters.values()
    return [(parameter.name, parameter.default) for parameter in found]


TWINS = [
    *((BaseSocketServer, name) for name in ("send", "close", "start_listeners")),
    *(
        (owner, name)
        for owner in (BaseSocketServer, Broadcaster)
        for name in ("broadcast", "broadcast_many", "subscribe", "unsubscribe")
    ),
]


@pytest.mark.parametrize(("owner", "name"), TWINS, ids=lambda part: getattr(part, "__name__", part))
def test_a_plain_call_and_its_coroutine_take_the_same_arguments(owner: type, name: str) -> None:
    plain, coroutine = getattr(owner, name), getattr(owner, f"async_{name}")
    assert not inspect.iscoroutinefunction(plain)
    assert inspect.iscoroutinefunction(coroutine)
    assert parameters(plain) == parameters(coroutine)


async def test_the_constructor_takes_each_argument_by_its_published_name() -> None:
    sent: asyncio.Queue[Any] = asyncio.Queue()
    socket = BaseSocketServer(
        {},
        None,
        sent.put,
        hosts=[{"address": "memory://published"}],
        ws_encoder=repr,  # Text, which goes out as a binary frame all the same.
        ws_encoder_is_bytes=True,
        ws_decoder=lambda frame: frame,
        subprotocol="chat",
    )
    await socket.async_send(1)
    assert sent.get_nowait() == {"type": "websocket.send", "bytes": b"1"}
    assert (socket.subprotocol, socket.hosts) == ("chat", [{"address": "memory://published"}])


async def test_hosts_of_a_socket_choose_its_broker() -> None:
    hosts = [{"address": "memory://hosts"}]
    socket = BaseSocketServer({}, None, None, hosts=hosts)
    await socket.async_subscribe("room")
    await Broadcaster().async_broadcast("room", "of another broker")
    await Broadcaster(hosts=hosts).async_broadcast("room", "of this one")
    assert await socket.async_receive_broadcast() == ("room", "of this one")


class Configured(BaseSocketServer):
    def configure(self) -> None:
        self.hosts = [{"address": "memory://published"}]
        self.ws_encoder = lambda data: f"<{data}>"
        self.ws_encoder_is_bytes = False
        self.ws_decoder = lambda frame: f"({frame!s})"
        self.subprotocol = "chat"

    def connect(self) -> None:
        self.subscribe("room")

    def receive(self, data: Any) -> None:
        self.broadcast(["room"], data)
        self.broadcast_many(["room"], "many")
        self.unsubscribe("room")
        self.send("raw", raw=True)
        self.close(4000)


async def test_a_class_configures_itself_and_uses_every_plain_call() -> None:
    async with SocketClient(Configured.as_asgi, subprotocols=["chat"]) as client:
        assert client.subprotocol == "chat"
        await client.send_text("x")
        got = [await client.receive() for _ in range(3)]
        assert sorted(map(str, got)) == ["<(x)>", "<many>", "raw"]
        assert await client.receive_close() == 4000


@pytest.mark.parametrize("signature", ["disconnect(self)", "disconnect(self, code)"])
@pytest.mark.parametrize("prefix", ["def", "async def"])
async def test_hooks_are_written_in_any_of_the_published_forms(prefix: str, signature: str) -> None:
    called: list[str] = []
    names: dict[str, Any] = {"called": called}
    for hook in ("connect(self)", "receive(self, data)", signature):
        exec(f"{prefix} {hook}: called.append({hook.partition('(')[0]!r})", names)
    kind = type(
        "Kind", (BaseSocketServer,), {n: names[n] for n in ("connect", "receive", "disconnect")}
    )
    with override_broker():
        async with SocketClient(kind.as_asgi) as client:  # type: ignore[attr-defined]
            await client.send_json(1)
    assert called == ["connect", "receive", "disconnect"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"hosts": [{"address": "memory://published"}]},
        {"config": "memory://published"},
        {"loop": None},
    ],
)
async def test_a_broadcaster_is_made_and_used_in_the_published_ways(arguments: Any) -> None:
    with override_broker():
        broadcaster = Broadcaster(**arguments)
        await broadcaster.async_subscribe("room")
        await broadcaster.async_broadcast("room", {"n": 1})
        assert await broadcaster.async_receive_broadcast() == ("room", {"n": 1})
        await broadcaster.aclose()
