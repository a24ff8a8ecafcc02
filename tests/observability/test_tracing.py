"""Traces: what belongs to one message is one trace, across processes, and nothing else is in it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode

from django_sockets import Reject, RequestError, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.delivery.envelope import HEADER_BYTES, Publisher, traceparent_of, unpack
from django_sockets.errors import PublishError
from django_sockets.observability import start_tracing, stop_tracing
from django_sockets.runtime import close_shared_hubs, shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import HandshakeRefused, SocketClient
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from django_sockets.typed import on
from support.spans import Spans, spans_of_process

ROOT = Path(__file__).resolve().parents[2]
PROCESS = ROOT / "tests" / "support" / "traced_process.py"
_numbers = itertools.count()


@pytest.fixture(autouse=True)
async def no_shared_hubs() -> Any:
    yield
    await close_shared_hubs()


@pytest.fixture
def spans() -> Iterator[Spans]:
    with spans_of_process() as spans:
        yield spans


@pytest.fixture
def url() -> str:
    return f"memory://traced-{next(_numbers)}"


def parent_of(span: Any) -> int | None:
    return None if span.parent is None else span.parent.span_id


def is_child(child: Any, parent: Any) -> bool:
    return bool(
        child.context.trace_id == parent.context.trace_id
        and parent_of(child) == parent.context.span_id
    )


class Room(BaseSocketServer):
    async def authorize(self) -> None:
        if self.scope["path"] == "/forbidden":
            raise Reject(status=418)

    async def connect(self) -> None:
        await self.async_subscribe("room:1")
        await self.async_send("ready")

    async def receive(self, data: Any) -> None:
        if data == "fail":
            raise LookupError("no such thing")
        if data == "refuse":
            raise RequestError("refused")
        await self.async_broadcast("room:1", data)

    def error(self, exc: Exception) -> None:
        pass


class Listening(Room):
    async def async_handle_received_broadcast(self, channel: str, data: Any) -> None:
        if data == "ask":
            await self.async_broadcast("room:1", "answer")
        await self.async_send(data)


def app(base: type[BaseSocketServer], url: str) -> Any:
    return type(base.__name__, (base,), {"config": url}).as_asgi  # type: ignore[attr-defined]


# One message through two processes


def test_one_message_is_one_trace_from_the_view_to_the_reply(valkey_server: CacheServer) -> None:
    @contextmanager
    def process(role: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, str(PROCESS), role, valkey_server.url]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        ) as running:
            try:
                yield running
            finally:
                running.kill()

    with process("socket") as socket:
        assert socket.stdout is not None
        assert socket.stdout.readline() == "ready\n"
        with process("view") as view:
            of_view = json.loads(view.communicate()[0])
        of_socket = json.loads(socket.communicate()[0])
    request = next(span for span in of_view if span["name"] == "GET /order/")
    in_trace = [
        (role, span)
        for role, spans in (("view", of_view), ("socket", of_socket))
        for span in spans
        if span["trace"] == request["trace"]
    ]
    path, role_and_span = [], ("view", request)
    while role_and_span is not None:
        role, span = role_and_span
        path.append((role, span["name"], span["attributes"].get("messaging.destination.name")))
        children = [one for one in in_trace if one[1]["parent"] == span["id"]]
        assert len(children) <= 1
        role_and_span = children[0] if children else None
    assert path == [
        ("view", "GET /order/", None),
        ("view", "publish", "orders"),
        ("socket", "process", "orders"),
        ("socket", "Kitchen.async_handle_received_broadcast", None),
        ("socket", "publish", "replies"),
        ("view", "process", "replies"),
    ]
    assert len(in_trace) == len(path)


# What a span says


async def test_a_publish_and_its_delivery_have_the_attributes_of_the_conventions(
    url: str, spans: Spans
) -> None:
    async with open_hub(url) as hub, hub.subscribe("room:1") as events:
        await hub.publish("room:1", b"text")
        message = await anext(events)
    publish, process = spans.one("publish"), spans.one("process")
    own = f"00-{process.context.trace_id:032x}-{process.context.span_id:016x}"
    assert str(getattr(message, "traceparent", None)).startswith(own)
    assert publish.kind is SpanKind.PRODUCER
    assert dict(publish.attributes or {}) == {
        "messaging.system": "memory",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "room:1",
        "messaging.message.body.size": 4,
    }
    assert process.kind is SpanKind.CONSUMER
    assert dict(process.attributes or {}) == {
        "messaging.system": "memory",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "room:1",
        "messaging.message.body.size": 4,
        "django_sockets.subscribers": 1,
    }
    assert is_child(process, publish)


async def test_a_message_to_several_channels_is_one_publish(url: str, spans: Spans) -> None:
    async with open_hub(url) as hub, hub.subscribe("a", "b") as events:
        await hub.publish(["a", "b"], b"text")
        await anext(events)
        await anext(events)
    publish = spans.one("publish")
    assert (publish.attributes or {})["messaging.batch.message_count"] == 2
    assert "messaging.destination.name" not in (publish.attributes or {})
    deliveries = [span for span in spans.all if span.name == "process"]
    assert all(is_child(span, publish) for span in deliveries)
    channels = {(span.attributes or {})["messaging.destination.name"] for span in deliveries}
    assert channels == {"a", "b"}


async def test_a_template_makes_names_that_can_be_counted(url: str) -> None:
    def template(channel: str) -> str | None:
        return "room:{id}" if channel.startswith("room:") else None

    with spans_of_process(channel_template=template) as spans:
        async with open_hub(url) as hub:
            await hub.publish("room:1", b"text")
            await hub.publish("other", b"text")
    assert spans.names == ["publish room:{id}", "publish"]
    attributes = spans.one("publish room:{id}").attributes or {}
    assert attributes["messaging.destination.template"] == "room:{id}"


async def test_a_publish_that_fails_is_an_error(spans: Spans) -> None:
    async with open_hub(f"redis://127.0.0.1:{free_port()}") as hub:
        with pytest.raises(PublishError):
            await hub.publish("room", b"1")
    publish = spans.one("publish")
    assert publish.status.status_code is StatusCode.ERROR
    assert (publish.attributes or {})["error.type"] == "django_sockets.errors.PublishError"


def test_what_a_plain_thread_publishes_belongs_to_its_trace(
    valkey_server: CacheServer, spans: Spans
) -> None:
    broadcaster = Broadcaster(valkey_server.url)
    tracer = spans.provider.get_tracer("test")
    for _ in range(5):  # The first ones are published on the event loop, later ones on this thread.
        with tracer.start_as_current_span("request"):
            broadcaster.broadcast("room", "text")
    requests = [span for span in spans.all if span.name == "request"]
    publishes = [span for span in spans.all if span.name == "publish"]
    assert len(publishes) == 5
    assert all(map(is_child, publishes, requests))


async def test_a_connection_has_no_span_of_its_own_and_its_frames_have_traces_of_their_own(
    url: str, spans: Spans
) -> None:
    # An ASGI instrumentation has a span that lasts as long as the connection.
    with spans.provider.get_tracer("test").start_as_current_span("whole connection") as outer:
        async with SocketClient(app(Room, url)) as client:
            assert await client.receive_json() == "ready"
            for text in ("one", "two"):
                await client.send_json(text)
                assert await client.receive_json() == text
    handshake = spans.one("Room handshake")
    assert parent_of(handshake) == outer.get_span_context().span_id
    assert is_child(spans.one("Room.authorize"), handshake)
    assert is_child(spans.one("Room.connect"), handshake)
    frames = [span for span in spans.all if span.name == "Room.receive"]
    assert [span.parent for span in frames] == [None, None]
    assert len({span.context.trace_id for span in [*frames, handshake]}) == 3
    for span in frames:
        assert span.kind is SpanKind.SERVER
        assert [link.context.span_id for link in span.links] == [handshake.context.span_id]
    publishes = [span for span in spans.all if span.name == "publish"]
    assert all(map(is_child, publishes, frames))


async def test_a_handshake_belongs_to_the_trace_of_its_headers(url: str, spans: Spans) -> None:
    headers = {"traceparent": f"00-{7:032x}-{9:016x}-01"}
    async with SocketClient(app(Room, url), headers=headers) as client:
        assert await client.receive_json() == "ready"
    handshake = spans.one("Room handshake")
    assert (handshake.context.trace_id, parent_of(handshake)) == (7, 9)


async def test_a_handshake_tells_its_path_without_the_query_and_its_outcome(
    url: str, spans: Spans
) -> None:
    with pytest.raises(HandshakeRefused):
        async with SocketClient(app(Room, url), "/forbidden?token=secret"):
            pass
    attributes = dict(spans.one("Room handshake").attributes or {})
    assert attributes["http.response.status_code"] == 418
    assert attributes["django_sockets.outcome"] == "refused"
    assert attributes["url.path"] == "/forbidden"
    assert "secret" not in str([span.to_json() for span in spans.all])
    assert spans.one("Room handshake").status.status_code is StatusCode.UNSET


async def test_an_error_of_a_handler_is_in_its_span_and_a_refusal_is_no_error(
    url: str, spans: Spans
) -> None:
    client = SocketClient(app(Room, url), raise_errors=False)
    async with client:
        assert await client.receive_json() == "ready"
        await client.send_json("fail")
        await client.send_json("refuse")
        assert (await client.receive_json())["error"]["type"] == "refused"
    failed, refused = [span for span in spans.all if span.name == "Room.receive"]
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "builtins.LookupError"
    assert [event.name for event in failed.events] == ["exception"]
    assert refused.status.status_code is StatusCode.UNSET
    assert (refused.attributes or {})["django_sockets.outcome"] == "refused"


class Typed(BaseSocketServer):
    @on("fine")
    async def fine(self) -> str:
        return "fine"

    @on("broken")
    def broken(self) -> None:
        raise LookupError


async def test_a_request_is_a_span_around_its_handler(url: str, spans: Spans) -> None:
    client = SocketClient(app(Typed, url), subprotocols=["django-sockets.v1"], raise_errors=False)
    async with client:
        for number, name in enumerate(("fine", "broken")):
            await client.send_json({"id": number, "message": {"type": name}})
            while "ok" not in (answer := await client.receive_json()) and "error" not in answer:
                pass
    fine, broken = [span for span in spans.all if span.name == "request"]
    assert is_child(spans.one("Typed.fine"), fine)
    assert is_child(spans.one("Typed.broken"), broken)
    assert fine.status.status_code is StatusCode.UNSET
    assert broken.status.status_code is StatusCode.ERROR


# Contexts that must not mix


async def test_a_handler_of_a_broadcast_without_a_trace_belongs_to_no_trace(
    url: str, spans: Spans
) -> None:
    """The task of the handler may have been made while something else was traced."""
    async with SocketClient(app(Listening, url)) as client:
        assert await client.receive_json() == "ready"
        (header,) = Publisher().headers(["room:1"], True)
        with spans.provider.get_tracer("test").start_as_current_span("request") as request:
            await shared_hub(load_config(url)).deliver([("room:1", header + b'"ask"')])
            assert [await client.receive_json(), await client.receive_json()] == ["ask", "answer"]
    answer = spans.one("publish")
    assert answer.parent is None
    assert answer.context.trace_id != request.get_span_context().trace_id


async def test_a_handler_of_a_broadcast_belongs_to_the_trace_of_the_broadcast(
    url: str, spans: Spans
) -> None:
    async with SocketClient(app(Listening, url)) as client:
        assert await client.receive_json() == "ready"
        for _ in range(2):
            await client.send_json("ask")
            assert [await client.receive_json(), await client.receive_json()] == ["ask", "answer"]
    frames = [span for span in spans.all if span.name == "Listening.receive"]
    for frame in frames:
        names = [span.name for span in spans.all if span.context.trace_id == frame.context.trace_id]
        assert sorted(names) == [
            "Listening.async_handle_received_broadcast",
            "Listening.async_handle_received_broadcast",
            "Listening.receive",
            "process",
            "process",
            "publish",
            "publish",
        ]


# Sampling


class Counting(Sampler):
    """Samples nothing, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self.asked += 1
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "Counting"


async def published(url: str) -> list[bytes]:
    """The messages that two publishes send, as a subscriber of the server gets them."""
    sent = []
    with redis.Redis.from_url(url) as client, client.pubsub() as subscriber:
        subscriber.subscribe("django_sockets:{room}")
        async with open_hub(url) as hub, hub.subscribe("room") as events:
            for payload in (b"1", b"2"):
                await hub.publish("room", payload)
                await anext(events)
        while len(sent) < 2:
            if (message := subscriber.get_message(timeout=30)) and message["type"] == "message":
                sent.append(message["data"])
    return sent


LENGTHS = [HEADER_BYTES + 1, HEADER_BYTES + 11 + 1]
"""The bytes of two messages without traces. The second one has the age of the first one."""


async def test_a_trace_that_is_not_sampled_adds_no_byte_and_no_span(
    valkey_server: CacheServer,
) -> None:
    sampler = Counting()
    with spans_of_process(sampler) as spans:
        sent = await published(valkey_server.url)
    assert [len(message) for message in sent] == LENGTHS
    assert spans.all == []
    assert sampler.asked == 2  # Not for the deliveries.


async def test_a_trace_that_is_sampled_adds_its_field(valkey_server: CacheServer) -> None:
    with spans_of_process() as spans:
        sent = await published(valkey_server.url)
    assert [len(message) - 58 for message in sent] == LENGTHS
    publishes = [span for span in spans.all if span.name == "publish"]
    for message, span in zip(sent, publishes, strict=True):
        context = span.context
        own = f"00-{context.trace_id:032x}-{context.span_id:016x}-"
        assert str(traceparent_of(message)).startswith(own)


async def test_a_span_that_is_recorded_only_here_is_not_sent(valkey_server: CacheServer) -> None:
    class Here(Counting):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            return SamplingResult(Decision.RECORD_ONLY)

    with spans_of_process(Here()):
        sent = await published(valkey_server.url)
    assert [len(message) for message in sent] == LENGTHS


async def test_what_happens_within_a_trace_that_is_not_sampled_is_not_sampled(url: str) -> None:
    class OnlyPublishes(Counting):
        def should_sample(self, context: Any, trace_id: int, name: str, *args: Any) -> Any:
            parent = trace.get_current_span(context).get_span_context()
            if name == "publish" and not parent.is_valid:
                return SamplingResult(Decision.RECORD_AND_SAMPLE)
            return SamplingResult(Decision.DROP)

    with spans_of_process(OnlyPublishes()) as spans:
        async with SocketClient(app(Room, url)) as client:
            assert await client.receive_json() == "ready"
            await client.send_json("hello")
            assert await client.receive_json() == "hello"
    assert spans.all == []


async def test_without_a_tracer_a_message_with_a_context_is_delivered_as_any_other(
    url: str,
) -> None:
    traceparent = f"00-{1:032x}-{2:016x}-01"
    publisher = Publisher()
    async with open_hub(url) as hub, hub.subscribe("room") as events:
        (header,) = publisher.headers(["room"], True, traceparent=traceparent)
        await hub.deliver([("room", header + b"1")])
        message = await anext(events)
        assert getattr(message, "payload", None) == b"1"


async def test_kept_messages_are_traced_and_are_complete(
    fresh_valkey_server: CacheServer, spans: Spans
) -> None:
    kept = quick(fresh_valkey_server.url, history_messages=100, history_seconds=60)
    async with open_hub(kept) as hub, hub.subscribe("room") as events:
        for payload in (b"1", b"2", b"3"):
            await hub.publish("room", payload, origin=b"12345678")
            message = await anext(events)  # No gap comes between them.
            assert getattr(message, "payload", None) == payload
            assert getattr(message, "position", None)
        page = await hub.history("room")
        assert [one.payload for one in page.messages] == [b"1", b"2", b"3"]
    publishes = [span for span in spans.all if span.name == "publish"]
    deliveries = [span for span in spans.all if span.name == "process"]
    assert all(map(is_child, deliveries, publishes))
    assert len(deliveries) == 3


# The field of the envelope


def test_the_field_is_found_among_the_others_and_skipped_by_readers_that_do_not_know_it() -> None:
    traceparent = f"00-{1:032x}-{2:016x}-01"
    publisher = Publisher()
    for origin in (None, b"12345678"):
        (header,) = publisher.headers(["room"], True, origin, traceparent=traceparent)
        message = header + b"payload"
        assert traceparent_of(message) == traceparent
        assert unpack(message)[-2:] == (origin, b"payload")
        assert len(header) <= HEADER_BYTES + 128 - 43  # The reserve, minus the place of history.
    (header,) = publisher.headers(["room"], True, b"12345678")
    assert traceparent_of(header + b"payload" * 20) is None


@pytest.mark.parametrize(
    "field",
    [b"\x04\x00\x37" + b"\xff" * 55, b"\x04\x00\x38" + b"0" * 56, b"\x09\x00\x40" + b"0" * 64],
)
def test_a_field_that_is_no_context_is_ignored(field: bytes) -> None:
    header = bytearray(Publisher().headers(["room"], True)[0])
    header[6:8] = len(field).to_bytes(2, "big")
    assert traceparent_of(bytes(header) + field) is None


@pytest.mark.parametrize("text", ["x" * 55, f"00-{0:032x}-{2:016x}-01"])
async def test_a_context_that_is_not_valid_does_no_harm(url: str, spans: Spans, text: str) -> None:
    publisher = Publisher()
    async with open_hub(url) as hub, hub.subscribe("room") as events:
        (header,) = publisher.headers(["room"], True, traceparent=text)
        await hub.deliver([("room", header + b"1")])
        message = await anext(events)
        assert getattr(message, "payload", None) == b"1"
    assert spans.one("process").parent is None


# A tracer that fails, and its end


async def test_a_tracer_that_fails_is_logged_and_disturbs_nothing(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Counting):
        def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
            raise LookupError("broken sampler")

    with spans_of_process(Broken()):
        async with SocketClient(app(Room, url)) as client:
            assert await client.receive_json() == "ready"
            await client.send_json("hello")
            assert await client.receive_json() == "hello"
    assert "the tracer failed" in caplog.messages


async def test_after_stop_tracing_nothing_is_recorded(url: str) -> None:
    with spans_of_process() as spans:
        stop_tracing()
        async with SocketClient(app(Room, url)) as client:
            assert await client.receive_json() == "ready"
    assert spans.all == []


async def test_a_second_start_replaces_the_first(url: str) -> None:
    with spans_of_process() as first, spans_of_process() as second:
        async with open_hub(url) as hub:
            await hub.publish("room", b"1")
    assert (first.names, second.names) == ([], ["publish"])


async def test_without_an_sdk_nothing_is_recorded_and_nothing_fails(url: str) -> None:
    start_tracing()
    try:
        async with SocketClient(app(Room, url)) as client:
            assert await client.receive_json() == "ready"
            await client.send_json("hello")
            assert await client.receive_json() == "hello"
    finally:
        stop_tracing()


async def test_a_handler_that_is_cancelled_leaves_no_error_of_opentelemetry(
    url: str, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Room):
        async def receive(self, data: Any) -> None:
            began.set()
            await asyncio.Event().wait()

    began = asyncio.Event()
    caplog.set_level(logging.ERROR)
    events: asyncio.Queue[Any] = asyncio.Queue()
    events.put_nowait({"type": "websocket.connect"})
    events.put_nowait({"type": "websocket.receive", "text": '"wait"'})
    scope = {"type": "websocket", "path": "/", "headers": []}
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    server = asyncio.ensure_future(app(Slow, url)(scope, events.get, send))
    await began.wait()
    server.cancel()
    await asyncio.wait([server])
    gc.collect()
    assert [record for record in caplog.records if "opentelemetry" in record.name] == []
    assert (spans.one("Slow.receive").attributes or {})["django_sockets.outcome"] == "cancelled"


def test_the_extra_is_named_when_opentelemetry_is_missing() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import django_sockets.observability as o\n"
        "from django_sockets.errors import ConfigurationError\n"
        "try: o.start_tracing\n"
        "except ConfigurationError as exc: print(exc)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "django-sockets[otel]" in ended.stdout


def test_opentelemetry_is_not_imported_with_the_library() -> None:
    code = "import sys, django_sockets.sockets, django_sockets.observability\n"
    code += "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
