"""The recipes of docs/history.md do what the page says, and its sizes are those of a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.history_size import size_of
from django_sockets.broadcaster import Broadcaster
from django_sockets.testing import SocketClient, override_broker
from django_sockets.testing.servers import CacheServer

TEXT = (Path(__file__).parents[2] / "docs" / "history.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
RULES = {
    prefix: {"messages": count, "seconds": 60}
    for prefix, count in {"room:": 100, "feed:": 100, "price:": 1, "order:": 5}.items()
}


def recipe(name: str) -> Any:
    """A class or function of the page."""
    (block,) = [
        block for block in BLOCKS if re.search(rf"^(class|def) {name}\b", block, re.MULTILINE)
    ]
    namespace: dict[str, Any] = {}
    exec(block, namespace)
    return namespace[name]


@pytest.fixture(autouse=True)
def broker() -> Any:
    with override_broker({"url": "memory://", "history": RULES}) as config:
        yield config


async def test_the_first_example_sends_the_state_only_if_something_is_missing() -> None:
    app = recipe("Room").as_asgi
    since = await Broadcaster().async_position("room:1")
    await Broadcaster().async_broadcast("room:1", "missed")
    async with SocketClient(app, f"/?since={since}") as client:
        assert await client.receive_json() == "missed"
    async with SocketClient(app) as client:
        assert await client.receive_json() == {"state": {}}
        assert await client.receive_nothing()


def test_the_last_messages_of_a_room() -> None:
    for number in range(30):
        Broadcaster().broadcast("room:7", number)
    data, position = recipe("last_messages")(7)
    assert data == list(range(10, 30))
    assert position == Broadcaster().position("room:7")


async def test_the_backlog_of_a_chat() -> None:
    app = recipe("Chat").as_asgi
    for number in range(60):
        await Broadcaster().async_broadcast("room:1", number)
    async with SocketClient(app) as client:
        await client.send_json({})
        frames = [await client.receive_json() for _ in range(51)]
        assert [frame for frame in frames if not isinstance(frame, dict)] == list(range(10, 60))
        (answer,) = [frame for frame in frames if isinstance(frame, dict)]
    await Broadcaster().async_broadcast("room:1", "missed")
    async with SocketClient(app) as client:
        await client.send_json({"since": answer["position"]})
        frames = [await client.receive_json() for _ in range(2)]
        assert "missed" in frames
        assert await client.receive_nothing()


async def test_the_latest_value() -> None:
    for price in (1, 2, 3):
        await Broadcaster().async_broadcast("price:1", price)
    async with SocketClient(recipe("Price").as_asgi) as client:
        assert await client.receive_json() == 3
        assert await client.receive_nothing()


async def test_resuming_by_hand() -> None:
    app = recipe("Feed").as_asgi
    async with SocketClient(app) as client:
        await client.send_json({"since": None})
        ready = await client.receive_json()
        assert ready["ready"] is False
        await Broadcaster().async_broadcast("feed:1", "live")
        last = await client.receive_json()
        assert last["data"] == "live"
    await Broadcaster().async_broadcast("feed:1", "missed")
    for position, count in ((last["position"], 1), (ready["position"], 2)):
        async with SocketClient(app) as client:
            await client.send_json({"since": position})
            frames = [await client.receive_json() for _ in range(1 + count)]
        answers = [frame["ready"] for frame in frames if "ready" in frame]
        data = [frame["data"] for frame in frames if "data" in frame]
        assert (answers, data) == ([True], ["live", "missed"][-count:])


@pytest.mark.parametrize(("messages", "column", "payload_bytes"), [(10, 2, 250), (100, 3, 1000)])
async def test_the_sizes_are_those_of_a_server(
    valkey_server: CacheServer, messages: int, column: int, payload_bytes: int
) -> None:
    (row,) = re.findall(rf"^\| {messages} \| (.*) \|$", TEXT, re.MULTILINE)
    documented = float(row.split(" | ")[column - 1].removesuffix(" kB").replace(",", "")) * 1000
    size = await size_of(valkey_server, messages, payload_bytes)
    assert documented == pytest.approx(size, rel=0.1)
