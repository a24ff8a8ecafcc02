"""The delivery probe does not take a healthy connection for a dead one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from django_sockets.broker import Broker
from django_sockets.registry import open_broker
from django_sockets.testing.contract.base import PATIENT, RecordingSink, with_options
from support.scripted_server import Conversation, ScriptedServer, encode, push

QUICK = {**PATIENT, "probe_interval_seconds": 0.01}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        yield server


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


def opened(server: ScriptedServer, sink: RecordingSink, **options: object) -> Broker:
    return open_broker(with_options(server.url, **{**QUICK, **options}), sink)


async def test_a_probe_is_no_proof_if_its_channel_was_subscribed_again_meanwhile(
    server: ScriptedServer, sink: RecordingSink
) -> None:
    """The last channel ends and another one begins: for a moment, the server drops the probe."""

    def unheard(_: Conversation, __: list[bytes]) -> bytes | None:
        return encode(0) if server.asked["PUBLISH"] == 1 else None

    broker = opened(server, sink, dead_peer_seconds=3)
    server.answers["PUBLISH"] = unheard
    await broker.subscribe(["first"])
    await server.until(lambda: server.asked["PUBLISH"] == 1)
    await broker.unsubscribe(["first"])
    await server.until(lambda: server.asked["UNSUBSCRIBE"] == 1)
    await broker.subscribe(["second"])
    await server.until(lambda: server.asked["PUBLISH"] == 3)
    assert sink.seen == []
    assert server.asked["SUBSCRIBE"] == 2
    await broker.aclose()


async def test_a_probe_waits_for_its_subscription(
    server: ScriptedServer, sink: RecordingSink
) -> None:
    withheld: list[bytes] = []

    def subscribed(conversation: Conversation, command: list[bytes]) -> bytes:
        names = [name for name in command[1:] if b":probe:" not in name]
        withheld.extend(name for name in command[1:] if name not in names)
        conversation.names.update(names)
        return b"".join(push(b"subscribe", name, 1) for name in names)

    def role(conversation: Conversation, _: list[bytes]) -> bytes | None:
        if not conversation.names:
            return None  # It is the publishing connection.
        answers = b"".join(push(b"subscribe", name, 1) for name in withheld)
        conversation.names.update(withheld)
        withheld.clear()
        return answers + encode([b"master", 0, []])

    broker = opened(server, sink)
    server.answers["SUBSCRIBE"] = subscribed
    await broker.subscribe(["room"])
    server.answers["ROLE"] = role
    await server.until(lambda: not withheld or server.asked["PUBLISH"] > 0)
    assert server.asked["PUBLISH"] == 0
    await server.until(lambda: server.asked["PUBLISH"] > 1)
    assert sink.seen == []
    await broker.aclose()
