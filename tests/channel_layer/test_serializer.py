"""Messages as bytes: msgpack, JSON, formats of the application, and encryption with rotation."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from django_sockets.errors import EncodeError
from django_sockets.integration.channel_layer import ChannelLayer
from django_sockets.integration.channel_layer.serializer import Serializer, Unreadable
from support.channel_layers import soon

URL = "memory://serializer"


def test_msgpack_is_the_default() -> None:
    layer = ChannelLayer(url=URL)
    message = {"a": True, "b": None, "c": {"d": []}}
    data = b"\x83\xa1a\xc3\xa1b\xc0\xa1c\x81\xa1d\x90"
    assert layer.serialize(message) == data
    assert layer.deserialize(data) == message


def test_json_is_text() -> None:
    layer = ChannelLayer(url=URL, serializer_format="json")
    assert layer.serialize({"type": "a.b", "text": "ü"}) == b'{"type": "a.b", "text": "\\u00fc"}'
    assert layer.deserialize(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    with pytest.raises(EncodeError, match="JSON has no bytes"):
        layer.serialize({"type": "a", "list": [{"b": b"x"}]})
    with pytest.raises(EncodeError, match="keys must be str"):
        layer.serialize({1: "a"})


def test_lazy_and_safe_texts_of_django() -> None:
    from django.utils.safestring import mark_safe

    for name in ("msgpack", "json"):
        layer = ChannelLayer(url=URL, serializer_format=name)
        assert layer.deserialize(layer.serialize({"text": mark_safe("<b>")})) == {"text": "<b>"}


def test_a_message_that_contains_itself_is_refused() -> None:
    message: dict[str, Any] = {"type": "a"}
    message["self"] = message
    with pytest.raises(EncodeError, match="contains itself"):
        ChannelLayer(url=URL).serialize(message)


@pytest.mark.parametrize("name", ["msgpack", "json"])
def test_encrypted_messages_show_nothing_and_keys_can_be_changed(name: str) -> None:
    def layer(*keys: str | bytes) -> ChannelLayer:
        return ChannelLayer(url=URL, serializer_format=name, symmetric_encryption_keys=[*keys])

    message = {"type": "a", "text": "visible?"}
    data = layer("old").serialize(message)
    assert b"visible" not in data
    assert data != layer("old").serialize(message)
    assert layer("new", b"old").deserialize(data) == message
    assert layer("new").deserialize(layer("new", "old").serialize(message)) == message
    for stranger in (layer("new"), ChannelLayer(url=URL, serializer_format=name)):
        with pytest.raises(Unreadable):
            stranger.deserialize(data)
    with pytest.raises(Unreadable):
        layer("old").deserialize(data[:-1] + bytes([data[-1] ^ 1]))


def test_an_encrypted_message_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    serializer = Serializer("msgpack", ["key"], 60)
    data = serializer.serialize({"type": "a"})
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 69)
    assert serializer.deserialize(data) == {"type": "a"}
    monkeypatch.setattr("time.time", lambda: now + 75)
    with pytest.raises(Unreadable, match="too old"):
        serializer.deserialize(data)


async def test_the_whole_layer_works_encrypted_and_the_server_sees_no_text(
    valkey_server: Any,
) -> None:
    layer = ChannelLayer(
        url=f"{valkey_server.url}?prefix=encrypted", symmetric_encryption_keys=["key"]
    )
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "test", "text": "visible?"})
    assert (await soon(layer.receive(channel)))["text"] == "visible?"
    await layer.send("normal", {"type": "test", "text": "visible?"})
    (key,) = valkey_server.execute("KEYS", "encrypted:*:q")
    assert "visible" not in str(valkey_server.execute("LRANGE", key, "0", "-1"))
    assert (await soon(layer.receive("normal")))["text"] == "visible?"
    await layer.flush()
    await layer.close()


async def test_a_message_with_another_key_is_dropped_and_counted() -> None:
    sender = ChannelLayer(url=URL, symmetric_encryption_keys=["old"])
    reader = ChannelLayer(url=URL, symmetric_encryption_keys=["new"])
    channel = await reader.new_channel()
    await sender.send(channel, {"type": "old"})
    await reader.send(channel, {"type": "new"})
    assert await soon(reader.receive(channel)) == {"type": "new"}
    assert reader.stats()["dropped_unreadable"] == 1
    for layer in (sender, reader):
        await layer.close()


def test_a_format_of_channels_redis_registry_is_used() -> None:
    registry = pytest.importorskip("channels_redis.serializers").registry

    class Repr:
        def __init__(self, **_: Any) -> None:
            pass

        def serialize(self, message: Any) -> bytes:
            return repr(message).encode()

        def deserialize(self, data: bytes) -> Any:
            return eval(data)

    registry.register_serializer("repr", Repr)
    layer = ChannelLayer(url=URL, serializer_format="repr")
    assert layer.serialize({"a": {1}}) == b"{'a': {1}}"
    assert layer.deserialize(b"{'a': {1}}") == {"a": {1}}


@pytest.mark.parametrize(
    ("package", "call", "extra"),
    [
        ("msgpack", "Serializer('msgpack', None, 60)", "channels"),
        ("cryptography", "Serializer('json', ['key'], 60)", "encryption"),
    ],
)
def test_a_missing_package_names_its_extra(package: str, call: str, extra: str) -> None:
    script = f"""
import sys
sys.modules[{package!r}] = None
from django_sockets.integration.channel_layer.serializer import Serializer
from django_sockets.errors import ConfigurationError
try:
    {call}
except ConfigurationError as exc:
    print(exc)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert f"django-sockets[{extra}]" in ended.stdout


def test_queues_of_fakeredis_without_lua_name_the_extra() -> None:
    script = """
import asyncio, sys
sys.modules["lupa"] = None
from django_sockets import open_hub
from django_sockets.errors import ConfigurationError

async def main():
    async with open_hub("fakeredis://") as hub:
        await hub.publish("room", b"works")
        try:
            await hub.queues.pop("jobs")
        except ConfigurationError as exc:
            print(exc)

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "django-sockets[lua]" in ended.stdout
