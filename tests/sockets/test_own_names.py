"""Applications may use any names for methods and attributes of sockets and broadcasters."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.conf import load_config
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient
from support.own_names import (
    NAMES,
    Attributes,
    BroadcasterAttributes,
    BroadcasterMethods,
    Methods,
)
from support.slow_client import Reluctant

TESTS = Path(__file__).resolve().parent.parent
WAIT_SECONDS = 5
COUNT = 40


def inherited(one: object) -> set[str]:
    return {name for name in dir(one) if not (name.startswith("__") and name.endswith("__"))}


def test_the_names_are_many_and_none_is_documented() -> None:
    assert len(set(NAMES)) >= 200
    assert inherited(BaseSocketServer({})).isdisjoint(NAMES)
    # A position is a likely name in a socket of a game, and not in a broadcaster.
    assert inherited(Broadcaster("memory://own-names")) & set(NAMES) == {"position"}


@pytest.mark.parametrize("cls", [BaseSocketServer, Broadcaster])
def test_no_second_private_name_is_inherited(cls: Any) -> None:
    class Theirs(cls):  # type: ignore[misc]
        pass

    made = Theirs({}, config="memory://own-names") if cls is BaseSocketServer else Theirs()
    private = {name for name in inherited(made) if name.startswith("_")}
    assert private == {"_connection"}
    methods = {name for name in inherited(Theirs) if name.startswith("_")}
    assert methods == set()


KINDS = pytest.mark.parametrize("kind", [Methods, Attributes])


def their_class(kind: Any, url: str, **options: Any) -> Any:
    """A chat of an application whose class has all the names."""

    class Theirs(kind):  # type: ignore[misc]
        config = url
        got_codes: list[int] = []  # noqa: RUF012
        all_objects: list[Any] = []  # noqa: RUF012

        def configure(self) -> None:
            self.tags["user_id"] = "7"

        async def authorize(self) -> bool:
            return True

        async def connect(self) -> None:
            self.all_objects.append(self)
            await self.async_subscribe("room")
            await self.async_send("joined")

        def receive(self, data: Any) -> None:
            if data == "refused":
                self.subscribe_for_client("secret")
            self.broadcast("room", data)

        async def gap(self, channels: Sequence[str], reason: str) -> None:
            await self.async_send({"gap": [*channels], "reason": reason})

        def disconnect(self, code: int) -> None:
            self.got_codes.append(code)
            if kind is Attributes:
                self.check_values()

    for name, value in options.items():
        setattr(Theirs, name, value)
    return Theirs


@KINDS
async def test_a_whole_life(kind: Any) -> None:
    url = f"memory://own-names-life-{kind.__name__}"
    theirs = their_class(kind, url)
    async with SocketClient(theirs.as_asgi) as client:
        assert await client.receive_json() == "joined"
        await client.send_json("hello")
        assert await client.receive_json() == "hello"
        shared_hub(load_config(url)).lost(["room"], "cut")
        assert await client.receive_json() == {"gap": ["room"], "reason": "cut"}
        (made,) = theirs.all_objects
        await made.async_broadcast("room", "not for the sender", exclude_self=True)
        await made.async_unsubscribe("room")
        await made.async_broadcast("room", "not any more")
        assert await client.receive_nothing()
        await made.async_close(4000)
        assert await client.receive_close() == 4000
    assert theirs.got_codes == [4000]
    assert not made.is_alive
    assert made.tags == {"user_id": "7"}


ENDINGS: dict[str, tuple[dict[str, Any], Any, int]] = {
    "too large": ({"max_message_bytes": 10}, "x" * 20, 1009),
    "not decoded": ({}, "no JSON", 1007),
    "too often": ({"rate_limit_per_second": 0.001}, '"first"', 1008),
    "not allowed": ({}, '"refused"', 1008),
    "idle": ({"idle_timeout_seconds": 0.05}, '"first"', 4408),
}


@KINDS
@pytest.mark.parametrize("ending", ENDINGS)
async def test_every_way_to_be_closed(kind: Any, ending: str) -> None:
    options, frame, code = ENDINGS[ending]
    url = f"memory://own-names-{ending.replace(' ', '-')}-{kind.__name__}"
    theirs = their_class(kind, url, **options)
    async with SocketClient(theirs.as_asgi, raise_errors=False) as client:
        await client.send_text(frame)
        if ending == "too often":
            await client.send_text(frame)
        assert await client.receive_close() == code
    assert theirs.got_codes == [code]


@KINDS
@pytest.mark.parametrize("policy", ["close", "drop_oldest", "drop_newest"])
async def test_a_client_that_reads_too_slowly(kind: Any, policy: str) -> None:
    url = f"memory://own-names-{policy}-{kind.__name__}"
    theirs = their_class(kind, url, overflow=policy, outbox_messages=4)
    broadcaster = Broadcaster(url)
    client = Reluctant(theirs.as_asgi)
    async with client:
        await client.until(lambda: client.got == ["joined"])
        client.stop_reading()
        for number in range(COUNT):
            await broadcaster.async_broadcast("room", number)
        if policy == "close":
            await asyncio.wait_for(client.task, WAIT_SECONDS)
        else:
            gap = {"gap": ["room"], "reason": "overflow"}
            hub = shared_hub(load_config(url))
            while hub.stats()["delivered"] < COUNT:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
            client.go_on_reading()
            await broadcaster.async_broadcast("room", "after")
            await client.until(lambda: gap in client.got)
    assert theirs.got_codes == [1013 if policy == "close" else 1001]


@KINDS
async def test_a_script(kind: Any) -> None:
    """The listeners run on the library's own loop, and plain calls come from this thread."""
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    theirs = their_class(kind, f"memory://own-names-script-{kind.__name__}")

    def script() -> None:
        made = theirs({}, None, send)
        made.start_listeners()
        made.subscribe("room")
        made.broadcast("room", "to all")
        made.send("to the client")
        made.close()

    await asyncio.to_thread(script)
    assert [event["type"] for event in sent].count("websocket.send") >= 1
    assert sent[-1] == {"type": "websocket.close", "code": 1000}


@pytest.mark.parametrize("kind", [BroadcasterMethods, BroadcasterAttributes])
async def test_a_broadcaster(kind: Any) -> None:
    made = kind(f"memory://own-names-{kind.__name__}")
    await made.async_subscribe(["room", "hall"])
    await made.async_broadcast_many(["room"], 1)
    made.broadcast("hall", 2)
    got = [await asyncio.wait_for(made.async_receive_broadcast(), WAIT_SECONDS) for _ in range(2)]
    assert sorted(got) == [("hall", 2), ("room", 1)]
    await made.async_unsubscribe("room")
    await made.aclose()
    if kind is BroadcasterAttributes:
        made.check_values()


@pytest.mark.timeout(180)
def test_the_tests_of_the_lifecycle_pass_on_a_class_with_all_the_names() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    ended = subprocess.run(
        [*command, "-p", "support.own_names", "tests/sockets/test_lifecycle.py"],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert " passed" in ended.stdout
