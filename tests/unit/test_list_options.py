"""List options refuse a string, whose characters would be the entries, such as "*"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.connection.origin import origin_problem
from django_sockets.errors import ChannelError, ConfigurationError
from django_sockets.middleware import OriginMiddleware
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient

SECRET = "memory://:secret@host"
OPTIONS: dict[str, tuple[str, ...]] = {
    "allowed_origins": ("https://*.partner.example", "*", "null", ""),
    "allowed_hosts": ("*", "chat.example.com", ""),
    "hosts": (SECRET,),
}
CASES = [(name, text) for name, texts in OPTIONS.items() for text in texts]


async def app(*_: Any) -> None: ...


def in_the_class(name: str, value: Any) -> None:
    type("Chat", (BaseSocketServer,), {name: value})


def inherited(name: str, value: Any) -> None:
    base = type("Base", (BaseSocketServer,), {name: []})
    type("Chat", (base,), {name: value})


def in_configure(name: str, value: Any) -> None:
    def configure(self: BaseSocketServer) -> None:
        setattr(self, name, value)

    type("Chat", (BaseSocketServer,), {"configure": configure})({"type": "websocket"})


def in_init(name: str, value: Any) -> None:
    class Chat(BaseSocketServer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            setattr(self, name, value)
            super().__init__(*args, **kwargs)

    Chat({"type": "websocket"})


def by_a_property(name: str, value: Any) -> None:
    chat = type("Chat", (BaseSocketServer,), {name: property(lambda self: value)})
    chat({"type": "websocket"})


def as_an_argument(name: str, value: Any) -> None:
    if name == "hosts":
        BaseSocketServer({"type": "websocket"}, hosts=value)
    else:
        OriginMiddleware(app, **{name: value})


WAYS = [in_the_class, inherited, in_configure, in_init, by_a_property, as_an_argument]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("name", "text"), CASES)
def test_a_text_in_place_of_a_list_is_refused(
    name: str, text: str, way: Callable[[str, Any], None]
) -> None:
    for value in (text, text.encode(), {text: 1}, 7):
        with pytest.raises(ConfigurationError) as refused:
            way(name, value)
        said = str(refused.value)
        assert name in said
        assert "list" in said
        assert "[" in said  # What to write.
        assert "secret" not in said


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("name", "entry"),
    [("allowed_origins", "https://a.example"), ("allowed_hosts", "a.b"), ("hosts", "memory://")],
)
def test_lists_of_every_kind_are_accepted(
    name: str, entry: str, way: Callable[[str, Any], None]
) -> None:
    for kind in (list, tuple) if name == "hosts" else (list, tuple, set, frozenset):
        way(name, kind([entry]))


def test_a_text_that_is_set_on_a_class_later_opens_nothing() -> None:
    class Chat(BaseSocketServer):
        config = "memory://"

    Chat.allowed_origins = "https://*.partner.example"
    scope = {"headers": [(b"host", b"localhost"), (b"origin", b"https://evil.test")]}
    assert origin_problem(scope, Chat.allowed_origins) is not None
    Chat.allowed_hosts = "*"
    scope = {"headers": [(b"host", b"evil.test"), (b"origin", b"http://evil.test")]}
    assert origin_problem(scope, (), Chat.allowed_hosts) is not None


@pytest.mark.parametrize("hosts", [SECRET, SECRET.encode(), {"address": SECRET}, 7])
def test_hosts_of_a_configuration(hosts: Any) -> None:
    for make in (lambda: load_config({"hosts": hosts}), lambda: Broadcaster(hosts=hosts)):
        with pytest.raises(ConfigurationError, match="list") as refused:
            make()
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("sentinels", ["10.0.0.1:26379", ["10.0.0.1:26379"], [b"a"], b"a", 7])
def test_sentinels_of_a_host(sentinels: Any) -> None:
    with pytest.raises(ConfigurationError, match="'sentinels' is a list"):
        load_config({"hosts": [{"master_name": "m", "sentinels": sentinels}]})


@pytest.mark.parametrize("channels", ["room", b"room"])
async def test_channels_of_a_broadcast_to_many(channels: Any) -> None:
    sockets = [Broadcaster("memory://many"), BaseSocketServer({"type": "websocket"})]
    for one in sockets:
        with pytest.raises(ChannelError, match="no list"):
            await one.async_broadcast_many(channels, "data")


@pytest.mark.parametrize("offered", ["chat", b"chat"])
def test_subprotocols_of_a_test_client(offered: Any) -> None:
    with pytest.raises(ConfigurationError, match="subprotocols"):
        SocketClient(app, subprotocols=offered)


@pytest.mark.parametrize("value", [["chat"], ("chat",), b"chat"])
def test_a_list_in_place_of_the_one_subprotocol(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Chat\.subprotocol"):
        type("Chat", (BaseSocketServer,), {"subprotocol": value})
