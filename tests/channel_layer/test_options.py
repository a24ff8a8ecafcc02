"""The options of the layer: those of channels_redis, so that a project moves by one line."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from django_sockets.errors import ConfigurationError
from django_sockets.integration.channel_layer import ChannelLayer, options
from django_sockets.testing import override_broker
from django_sockets.testing.sentinels import SentinelTrio
from django_sockets.testing.servers import CacheServer
from support.channel_layers import soon


async def works(layer: ChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("options", channel)
    await layer.group_send("options", {"type": "test"})
    assert await soon(layer.receive(channel)) == {"type": "test"}
    await layer.close()


def broker_of(layer: ChannelLayer) -> str:
    return repr(layer).partition("(")[2].partition(", prefix=")[0]


@pytest.mark.parametrize(
    ("hosts", "broker"),
    [
        ([("localhost", 6380)], "redis://localhost:6380"),
        ([["localhost", 6380]], "redis://localhost:6380"),
        (("redis://localhost:6380",), "redis://localhost:6380"),
        (["redis://:secret@localhost:6380/1"], "redis://:***@localhost:6380/1"),
        (["rediss://user:secret@localhost"], "rediss://user:***@localhost"),
        (["unix:///tmp/redis.sock"], "redis+unix:///tmp/redis.sock"),
        ([{"address": "unix:///tmp/redis.sock"}], "redis+unix:///tmp/redis.sock"),
        ([{"host": "localhost", "port": 6380}], "redis://localhost:6380"),
        ([{"address": "redis://localhost", "password": "secret"}], "redis://localhost"),
        (
            [{"sentinels": [("one", 26379), ("two", 26379)], "master_name": "main"}],
            "redis+sentinel://one:26379,two:26379/main",
        ),
        (
            ["redis://one", {"sentinels": [("two", 26379)], "master_name": "main"}],
            "redis://one + redis+sentinel://two:26379/main",
        ),
        ([{"address": "redis://seed", "cluster": True}], "redis+cluster://seed"),
    ],
)
def test_hosts_in_every_form_of_channels_redis(hosts: Any, broker: str) -> None:
    layer = ChannelLayer(hosts=hosts)
    assert broker_of(layer) == broker
    assert "secret" not in repr(layer) + str(layer)


def test_the_arguments_may_be_positional_in_the_order_of_channels_redis() -> None:
    layer = ChannelLayer([("localhost", 6379)], "site", 30, 600, 5, {"a*": 1})
    assert (layer.prefix, layer.expiry, layer.group_expiry, layer.capacity) == ("site", 30, 600, 5)
    assert layer.get_capacity("abc") == 1
    assert layer.get_capacity("b") == 5


async def test_hosts_that_run(valkey_server: CacheServer, valkey_sentinels: SentinelTrio) -> None:
    await works(ChannelLayer(hosts=[("127.0.0.1", valkey_server.port)]))
    await works(ChannelLayer(hosts=[{"host": "127.0.0.1", "port": valkey_server.port, "db": 1}]))
    await works(ChannelLayer(url=valkey_sentinels.url))


async def test_without_url_and_hosts_it_is_the_configured_broker() -> None:
    layer = ChannelLayer()
    for name in ("memory://one", "memory://two"):
        with override_broker(name):
            assert broker_of(layer) == name
            await works(layer)
    assert broker_of(ChannelLayer(hosts=[])) == "memory://"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hosts": "redis://localhost"}, "'hosts' is a list"),
        ({"hosts": [("localhost",)]}, "a host is a pair"),
        ({"hosts": [5]}, "a host is a URL"),
        ({"hosts": [{"address": "redis://localhost", "pasword": "x"}]}, "pasword"),
        ({"hosts": ["redis://localhost"], "url": "redis://localhost"}, "not both"),
        ({"url": "rediz://localhost"}, "unknown scheme"),
        ({"url": "redis://localhost?pefix=a"}, "did you mean 'prefix'"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": "a*"}, "wildcard"),
        ({"prefix": "p" * 65}, "at most 64 bytes"),
        ({"prefix": 5}, "not str"),
        ({"expiry": 0}, "expiry=0: use a number over 0"),
        ({"expiry": "60"}, "use a number over 0"),
        ({"group_expiry": -1}, "group_expiry=-1"),
        ({"capacity": 1.5}, "use a whole number"),
        ({"capacity": True}, "use a whole number"),
        ({"expiry": float("inf")}, "expiry=inf: use a number over 0"),
        ({"channel_capacity": {"a*": 0}}, "channel_capacity"),
        ({"channel_capacity": [("a*", 5)]}, "is a dict of pattern"),
        ({"channel_capacity": {5: 5}}, "the pattern 5"),
        ({"serializer_format": "mspack"}, "did you mean 'msgpack'"),
        ({"symmetric_encryption_keys": "one key"}, "is a list of keys"),
        ({"symmetric_encryption_keys": 5}, "is a list of keys"),
        ({"symmetric_encryption_keys": [5]}, "is a list of keys"),
        ({"gap_events": "yes"}, "use True or False"),
        ({"capcity": 5}, "did you mean 'capacity'"),
    ],
)
def test_a_wrong_option_says_what_to_write(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        ChannelLayer(**config)
    assert words in str(error.value)
    with pytest.raises(ValueError):  # noqa: PT011 - what channels_redis raises
        ChannelLayer(**config)


def test_no_error_of_the_options_shows_a_secret() -> None:
    for config in (
        {"hosts": ["redis://:s3cret@localhost:wrong"]},
        {"hosts": [{"address": "redis://localhost", "password": "s3cret", "wrong": 1}]},
        {"symmetric_encryption_keys": ["s3cret"], "serializer_format": "s"},
    ):
        with pytest.raises(ConfigurationError) as error:
            ChannelLayer(**config)  # type: ignore[arg-type]
        assert "s3cret" not in str(error.value)


def test_one_warning_names_the_options_without_a_meaning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(options, "_warned", set())
    config = {
        "hosts": [
            {"address": "redis://localhost", "health_check_interval": 5, "socket_timeout": 3}
        ],
        "random_prefix_length": 12,
        "on_disconnect": "redis.disconnect",
    }
    with caplog.at_level(logging.WARNING, "django_sockets"):
        ChannelLayer(**config)  # type: ignore[arg-type]
        ChannelLayer(**config)  # type: ignore[arg-type]
    (record,) = caplog.records
    text = record.getMessage()
    for name in (
        "random_prefix_length", "on_disconnect", "health_check_interval", "socket_timeout",
    ):  # fmt: skip
        assert name in text
    assert "gap_events" in text


def test_options_that_all_have_a_meaning_cause_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "django_sockets"):
        ChannelLayer(
            hosts=[("localhost", 6379)],
            prefix="asgi",
            expiry=60,
            group_expiry=86400,
            capacity=100,
            channel_capacity={"http.request": 200},
            symmetric_encryption_keys=["k" * 32],
            serializer_format="msgpack",
        )
    assert caplog.records == []


def test_a_forked_child_uses_the_layer_afresh() -> None:
    script = """
import os
from asgiref.sync import async_to_sync
from django_sockets.integration.channel_layer import ChannelLayer

layer = ChannelLayer(url="memory://fork")
channel = async_to_sync(layer.new_channel)()
pid = os.fork()
if pid == 0:
    own = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)("group", own)
    async_to_sync(layer.group_send)("group", {"type": "child"})
    os._exit(async_to_sync(layer.receive)(own) != {"type": "child"})
assert os.waitpid(pid, 0)[1] == 0
async_to_sync(layer.send)(channel, {"type": "parent"})
assert async_to_sync(layer.receive)(channel) == {"type": "parent"}
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    subprocess.run(command, check=True, timeout=30)
