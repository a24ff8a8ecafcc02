"""Any frame of a client affects only its own socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from django_sockets.runtime import close_shared_hubs
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient

INPUTS = int(os.environ.get("DJANGO_SOCKETS_FUZZ_INPUTS", "2000"))
"""Frames in all; 100,000 with `make fuzz`."""
FRAMES_AT_ONCE = 20

pytestmark = pytest.mark.timeout(60 + INPUTS / 50)

plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
texts = st.one_of(
    st.text(),
    plain_json.map(json.dumps),
    plain_json.map(lambda data: json.dumps(data)[:-1]),
    st.sampled_from(["", "{", "NaN", "[" * 5000, '{"a":' * 3000, "\ud800", "1e999", "-", '"\\u"']),
    st.integers(1000, 3000).map(lambda size: json.dumps("x" * size)),
)
frames = st.one_of(
    texts.map(lambda text: {"type": "websocket.receive", "text": text}),
    st.binary().map(lambda data: {"type": "websocket.receive", "bytes": data}),
    texts.map(lambda text: {"type": "websocket.receive", "bytes": text.encode(errors="replace")}),
    texts.map(lambda text: {"type": "websocket.receive", "text": text, "bytes": None}),
    st.just({"type": "websocket.receive"}),
    st.just({"type": "websocket.receive", "text": None, "bytes": None}),
)


class Echo(BaseSocketServer):
    config = "memory://fuzz"
    max_message_bytes = 2000

    async def connect(self) -> None:
        await self.async_subscribe("room")

    async def receive(self, data: Any) -> None:
        # Not the data: 1e999 is JSON, and the infinity that it means has no JSON.
        await self.async_send(repr(data))


class Lenient(Echo):
    """Continues after a bad frame, so that all frames are tried."""

    async def decode_error(self, exc: Exception) -> None:
        await self.async_send("bad")


@pytest.fixture
def no_tracebacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    gc.collect()  # Otherwise the tasks of an earlier test's loop may be reported in this one.
    yield
    assert not [r for r in caplog.get_records("call") if r.exc_info or r.levelno > logging.WARNING]


async def converse(batch: list[Any]) -> None:
    """Send all of it to both kinds, and then speak with a neighbour."""
    async with SocketClient(Echo.as_asgi) as neighbour:
        for kind in (Echo, Lenient):
            async with SocketClient(kind.as_asgi) as client:
                for frame in batch:
                    await client._to_app.put(frame)
                await client._to_app.put({"type": "websocket.receive", "text": '"the end"'})
                # It answers to the end, or it has closed; nothing in between.
                with contextlib.suppress(Exception):
                    while await client.receive() != "\"'the end'\"":
                        pass
                assert client.close_code in (None, 1007, 1009, 1011)
        await neighbour.send_json("still here")
        assert await neighbour.receive_json() == "'still here'"


@pytest.mark.usefixtures("no_tracebacks")
def test_no_frame_of_a_client_does_harm() -> None:
    @settings(
        max_examples=max(1, INPUTS // FRAMES_AT_ONCE),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(frames, min_size=FRAMES_AT_ONCE, max_size=FRAMES_AT_ONCE))
    def check(batch: list[Any]) -> None:
        loop.run_until_complete(asyncio.wait_for(converse(batch), 20))

    loop = asyncio.new_event_loop()
    try:
        check()
    finally:
        # The collector may destroy the tasks of an open hub during this test or a later one.
        loop.run_until_complete(close_shared_hubs())
        loop.close()
