"""Channel names and payloads."""

from __future__ import annotations

import logging
import random
import uuid
from typing import Any

import pytest

from ...deadlines import with_deadline
from ...delivery.envelope import HEADER_BYTES
from ...delivery.events import Gap, Message
from ...delivery.message import Delivery
from ...errors import ChannelError, PayloadTooLarge
from ...hub.hub import CONTROL, open_hub
from ...hub.survey.asking import Answer, Survey
from ...registry import open_broker
from .. import ledger
from ..ledger import listening
from .base import ContractTests, with_options

CHANNEL_NAMES = (
    "x",
    "n" * 255,
    "é" * 126 + "€",  # 255 bytes of UTF-8
    "🦊 room",
    " a  b ",
    "{a}{b}",
    "}{",
    "100%7B%25",
    ":a::b:",
    "[a-z]?\\^",
    "\"a' `b",
)
SIMILAR_NAMES = ("a{b", "a%7Bb", "a%257Bb", "a}b", "a%7Db", "a%b", "a%25b", "A{b", "a{b ", "{a{b}")
REFUSED_NAMES: tuple[tuple[Any, str], ...] = (
    ("", "give it a name"),
    ("é" * 128, "at most 255 bytes"),
    ("a\nb", "control characters"),
    ("room:*", "wildcard"),
    ("a\udc80", "UTF-8"),
    (7, "not str"),
    (b"room", "not str"),
    (None, "not str"),
)


class ContentContract(ContractTests):
    """Names and payloads of this library and of other programs."""

    async def test_every_valid_channel_name_works(self, broker_url: str) -> None:
        url = with_options(broker_url, prefix=uuid.uuid4().hex)
        async with open_hub(url) as hub, listening(hub, *CHANNEL_NAMES) as heard:
            for name in CHANNEL_NAMES:
                await hub.publish(name, name.encode())
                place = await heard.until_payload(name.encode())
                assert heard.events[place] == Message(channel=name, payload=name.encode())

    async def test_similar_channel_names_stay_apart(self, broker_url: str) -> None:
        url = with_options(broker_url, prefix=uuid.uuid4().hex)
        async with open_hub(url) as hub, listening(hub, *SIMILAR_NAMES) as heard:
            for name in SIMILAR_NAMES:
                await hub.publish(name, name.encode())
            await heard.until(lambda _: len(heard.messages) == len(SIMILAR_NAMES))
            await hub.publish(SIMILAR_NAMES[0], b"end")
            await heard.until_payload(b"end")
            assert {(m.channel, m.payload) for m in heard.messages[:-1]} == {
                (name, name.encode()) for name in SIMILAR_NAMES
            }

    async def test_the_control_channel_of_our_processes_is_carried(self, broker_url: str) -> None:
        url = with_options(broker_url, prefix=uuid.uuid4().hex)
        async with open_hub(url) as hub, open_hub(url) as other:
            queue = hub.new_queue()
            await hub.add_control(queue)
            await other.publish_control(b"{}")
            event = await with_deadline(ledger.PATIENCE_SECONDS, queue.next())
            assert event is not None
            assert isinstance(event, Delivery)
            assert (event.channel, event.payload) == (CONTROL, b"{}")

    async def test_a_survey_of_our_processes_is_answered(self, broker_url: str) -> None:
        url = with_options(broker_url, prefix=uuid.uuid4().hex)
        async with open_hub(url) as hub, open_hub(url) as asking, hub.subscribe("room:1"):
            hub.surveys.stay()
            async with Survey(asking) as survey:
                # A question before the hub listens is not answered.
                async def answered() -> Answer:
                    while not (answers := (await survey.ask(0.05)).answers):
                        pass
                    return answers[0]

                answer = await with_deadline(ledger.PATIENCE_SECONDS, answered())
            assert answer.report["state"] == "serving"
            assert answer.report["channels"] == [("room:1", 1)]

    async def test_an_unusable_channel_name_is_refused_with_a_reason(
        self, broker_url: str, room: str
    ) -> None:
        async with open_hub(broker_url) as hub, listening(hub, room) as heard:
            for name, problem in REFUSED_NAMES:
                with pytest.raises(ChannelError, match=problem) as refused:
                    await hub.publish([room, name], b"to nobody")
                assert refused.value.channel == name
                with pytest.raises(ChannelError, match=problem):
                    async with hub.subscribe(f"{room}:new", name):
                        pass
            assert hub.stats()["channels"] == 1
            await hub.publish(room, b"end")
            await heard.until_payload(b"end")
            assert len(heard.messages) == 1

    async def test_a_payload_arrives_unchanged(self, broker_url: str, room: str) -> None:
        payloads = [b"", bytes(range(256)), b"\r\n$-1\r\n", b"\xd7DS\x01", b"\xd7DS\x02"]
        async with open_hub(broker_url) as hub, listening(hub, room) as heard:
            for payload in payloads:
                await hub.publish(room, payload)
            await heard.until_payload(payloads[-1])
            assert [message.payload for message in heard.messages] == payloads

    async def test_the_largest_payload_arrives_and_a_larger_one_is_refused(
        self, broker_url: str, room: str
    ) -> None:
        limit = 5 * 1024 * 1024
        url = with_options(broker_url, max_payload_bytes=limit)
        async with open_hub(url) as hub, open_hub(url) as reader, listening(reader, room) as heard:
            payload = random.Random(0).randbytes(limit)  # noqa: S311 - reproducible, no secret
            with pytest.raises(PayloadTooLarge) as refused:
                await hub.publish(room, payload + b"!")
            assert (refused.value.size_bytes, refused.value.limit_bytes) == (limit + 1, limit)
            await hub.publish([room], payload)
            await hub.publish(room, b"small")
            await heard.until_payload(b"small")
            assert [message.payload == payload for message in heard.messages] == [True, False]
            assert heard.gaps == []

    async def test_a_payload_of_another_program_is_skipped_and_counted(
        self, broker_url: str, room: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        stranger = open_broker(broker_url)
        async with open_hub(broker_url) as hub, listening(hub, room) as heard:
            await hub.publish(room, b"before")
            poison = [b"", b"{}", b"\xd7DS", b"\xd7DS\x01" + b"\xff" * 40, b"x" * 100_000]
            with caplog.at_level(logging.WARNING):
                for payload in poison:
                    await stranger.publish([room], payload)
                await hub.publish(room, b"after")
                await heard.until_payload(b"after")
            assert [m.payload for m in heard.messages] == [b"before", b"after"]
            assert heard.gaps == []
            assert hub.stats()["poison"] == len(poison)
            warnings = [r for r in caplog.records if "no django_sockets process" in r.message]
            assert len(warnings) == 1
        await stranger.aclose()

    async def test_a_message_of_a_newer_version_is_signalled_as_a_gap(
        self, broker_url: str, room: str
    ) -> None:
        newer = open_broker(broker_url)
        async with open_hub(broker_url) as hub, listening(hub, room) as heard:
            await hub.publish(room, b"before")
            await newer.publish([room], b"\xd7DS\x02" + bytes(HEADER_BYTES) + b"?")
            await hub.publish(room, b"after")
            await heard.until_payload(b"after")
            assert heard.events == [
                Message(channel=room, payload=b"before"),
                Gap(channels=(room,), reason="version"),
                Message(channel=room, payload=b"after"),
            ]
        await newer.aclose()
