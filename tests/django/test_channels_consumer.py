"""A consumer of Channels behind our own routing and middleware, with our channel layer."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("channels")

from asgiref.sync import async_to_sync
from channels import DEFAULT_CHANNEL_LAYER
from channels.exceptions import InvalidChannelLayerError
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from channels.layers import channel_layers, get_channel_layer
from channels.testing import WebsocketCommunicator
from django.urls import path

from django_sockets.integration.channel_layer import ChannelLayer
from django_sockets.integration.layer_checks import BACKEND
from django_sockets.middleware import secure
from django_sockets.testing import SocketClient
from django_sockets.testing.client import HandshakeRefused
from django_sockets.utils import ProtocolTypeRouter, URLRouter


@pytest.fixture
def layer_settings(django_project: None) -> Iterator[None]:
    from django.test import override_settings

    layers = {
        "default": {
            "BACKEND": BACKEND,
            "CONFIG": {"url": "memory://consumers"},
            "TEST_CONFIG": {"url": "memory://test", "expiry": 100500},
        }
    }
    with override_settings(CHANNEL_LAYERS=layers):
        yield


class Room(AsyncJsonWebsocketConsumer):  # type: ignore[misc]
    async def connect(self) -> None:
        self.group = self.scope["url_route"]["kwargs"]["name"]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()
        await self.send_json({"user": self.scope["user"].username})

    async def receive_json(self, content: Any) -> None:
        await self.channel_layer.group_send(self.group, {"type": "said", "text": content})

    async def said(self, event: dict[str, Any]) -> None:
        await self.send_json(event["text"])


class SyncRoom(JsonWebsocketConsumer):  # type: ignore[misc]
    groups = ["sync"]  # noqa: RUF012 - as in the documentation of Channels

    def receive_json(self, content: Any) -> None:
        async_to_sync(self.channel_layer.group_send)("sync", {"type": "said", "text": content})

    def said(self, event: dict[str, Any]) -> None:
        self.send_json(event["text"])


ROUTES = [path("room/<name>/", Room.as_asgi()), path("sync/", SyncRoom.as_asgi())]


def application() -> Any:
    """The application, made after the settings are configured."""
    return ProtocolTypeRouter({"websocket": secure(URLRouter(ROUTES), allowed_origins=[])})


OWN = {"host": "testserver", "origin": "http://testserver"}


async def test_consumers_work_behind_our_routing_with_their_user(
    layer_settings: None, members: Any
) -> None:
    ann = await members.do(members.create)
    key = await members.do(members.login, ann)
    headers = {**OWN, "cookie": f"sessionid={key}"}
    async with (
        SocketClient(application(), "/room/tea/", headers=headers) as first,
        SocketClient(application(), "/room/tea/", headers=OWN) as second,
    ):
        assert await first.receive_json() == {"user": "ann"}
        assert await second.receive_json() == {"user": ""}
        await first.send_json("hello")
        assert await first.receive_json() == "hello"
        assert await second.receive_json() == "hello"


async def test_the_origin_is_checked_for_a_consumer(layer_settings: None, members: Any) -> None:
    foreign = {**OWN, "origin": "http://evil.example"}
    with pytest.raises(HandshakeRefused, match="403"):
        await SocketClient(application(), "/room/tea/", headers=foreign).connect()


async def test_a_sync_consumer_with_the_communicator_of_channels(layer_settings: None) -> None:
    one, two = [WebsocketCommunicator(SyncRoom.as_asgi(), "/sync/") for _ in range(2)]
    for communicator in (one, two):
        assert (await communicator.connect(10))[0]
    await one.send_json_to("hello")
    for communicator in (one, two):
        assert await communicator.receive_json_from(10) == "hello"
        await communicator.disconnect()


async def test_consumers_that_have_left_leave_nothing(
    layer_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_sockets.integration.channel_layer import endpoint

    monkeypatch.setattr(endpoint, "LINGER_SECONDS", 0.1)
    layer = get_channel_layer()
    for _ in range(5):
        sockets = [WebsocketCommunicator(SyncRoom.as_asgi(), "/sync/") for _ in range(10)]
        for socket in sockets:
            assert (await socket.connect(10))[0]
        for socket in sockets:
            await socket.disconnect()
    give_up = time.monotonic() + 10
    while layer.stats()["channels"] or layer.stats()["groups"]:
        assert time.monotonic() < give_up, layer.stats()
        await asyncio.sleep(0.05)
    await layer.close()
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert [name for name in names if "channel layer" in name] == []


def test_the_manager_of_channels_makes_the_layer(layer_settings: None) -> None:
    layer = get_channel_layer()
    assert isinstance(layer, ChannelLayer)
    assert get_channel_layer() is layer
    assert channel_layers.make_test_backend(DEFAULT_CHANNEL_LAYER).expiry == 100500


def test_the_manager_reports_wrong_settings(django_project: None) -> None:
    from django.test import override_settings

    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": BACKEND}}):
        with pytest.raises(InvalidChannelLayerError, match="TEST_CONFIG"):
            channel_layers.make_test_backend(DEFAULT_CHANNEL_LAYER)
        assert channel_layers.backends == {}
        get_channel_layer()
        assert channel_layers.backends != {}
    assert channel_layers.backends == {}
    gc.collect()
