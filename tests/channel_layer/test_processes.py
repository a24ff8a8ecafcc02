"""Several processes on one layer: orders to the owner of a channel, and workers that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from django_sockets.errors import CallError
from django_sockets.integration.channel_layer import ChannelLayer, orders
from django_sockets.testing.servers import CacheServer
from support.channel_layers import numbered, soon, take

PROCESS = """
import asyncio, json, sys
from django_sockets.integration.channel_layer import ChannelLayer

layer = ChannelLayer(url=sys.argv[1], prefix="processes")

def say(value):
    print(json.dumps(value), flush=True)

async def owner():
    channel = await layer.new_channel()
    say(channel)
    while True:
        say(await layer.receive(channel))

async def worker():
    say("ready")
    while True:
        say(await layer.receive("work"))
        await asyncio.Event().wait() if sys.argv[3:] else None

asyncio.run({"owner": owner, "worker": worker}[sys.argv[2]]())
"""


class Process:
    """A process that prints one JSON value in each line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(await soon(self.process.stdout.readline()))


@contextlib.asynccontextmanager
async def started(url: str, *arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROCESS, url, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Process(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture(params=["valkey_server", "valkey_cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param).url)


@pytest.fixture
async def layer(url: str) -> AsyncIterator[ChannelLayer]:
    layer = ChannelLayer(url=url, prefix="processes")
    yield layer
    await layer.flush()
    await layer.close()


async def test_another_process_adds_a_channel_to_a_group(layer: ChannelLayer, url: str) -> None:
    async with started(url, "owner") as owner:
        channel = await owner.read()
        await layer.send(channel, {"type": "direct"})
        assert await owner.read() == {"type": "direct"}
        await layer.group_add("group", channel)
        await layer.group_send("group", {"type": "group"})
        assert await owner.read() == {"type": "group"}
        await layer.group_discard("group", channel)
        await layer.group_send("group", {"type": "lost"})
        await layer.send(channel, {"type": "fence"})
        assert await owner.read() == {"type": "fence"}
        await layer.group_add("group", channel)
        await layer.flush()
        await layer.group_send("group", {"type": "lost"})
        await layer.send(channel, {"type": "fence"})
        assert await owner.read() == {"type": "fence"}
        with pytest.raises(CallError, match="belongs to another process"):
            await layer.receive(channel)


async def test_an_owner_that_has_ended_does_not_hold_up_the_caller_for_long(
    layer: ChannelLayer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "ORDER_SECONDS", 0.2)
    async with started(url, "owner") as owner:
        channel = await owner.read()
        owner.process.kill()
        await owner.process.wait()
    for call in (layer.group_add, layer.group_discard):
        with pytest.raises(CallError, match="its process may have ended"):
            await soon(call("group", channel))
    await layer.send(channel, {"type": "nobody"})


async def test_a_killed_worker_loses_the_message_that_it_handled_and_no_other(
    layer: ChannelLayer, url: str
) -> None:
    got = []
    async with started(url, "worker", "stays with its first message") as first:
        assert await first.read() == "ready"
        for message in numbered(*range(20)):
            await layer.send("work", message)
        got.append(await first.read())
        first.process.send_signal(signal.SIGKILL)
        await first.process.wait()
    async with started(url, "worker") as second:
        assert await second.read() == "ready"
        got += [await second.read() for _ in range(19)]
    assert got == numbered(*range(20))


async def test_a_worker_that_is_killed_at_any_moment_loses_at_most_one(
    layer: ChannelLayer, url: str
) -> None:
    sender = ChannelLayer(url=url, prefix="processes", capacity=1000)
    got: list[int] = []
    async with started(url, "worker") as killed, started(url, "worker") as other:
        for worker in (killed, other):
            assert await worker.read() == "ready"
        sending = asyncio.create_task(_send(sender, 300))
        got += [(await killed.read())["n"] for _ in range(5)]
        killed.process.send_signal(signal.SIGKILL)
        await killed.process.wait()
        assert killed.process.stdout is not None
        got += [json.loads(line)["n"] for line in (await killed.process.stdout.read()).splitlines()]
        await sending
        while not got or max(got) < 299:
            got.append((await other.read())["n"])
    assert len(set(got)) == len(got)
    assert len(got) >= 299
    await sender.close()


async def _send(layer: ChannelLayer, count: int) -> None:
    for message in numbered(*range(count)):
        await layer.send("work", message)


@pytest.mark.parametrize("kind", ["valkey_server", "valkey_cluster"])
async def test_sends_keep_their_order_while_the_server_forgets_its_scripts(
    request: pytest.FixtureRequest, kind: str
) -> None:
    server = request.getfixturevalue(kind)
    nodes = [server] if kind == "valkey_server" else await asyncio.to_thread(server.primaries)
    layer = ChannelLayer(url=server.url, prefix="scripts", capacity=10_000)
    await layer.send("work", {"type": "test", "n": 0})
    sends: list[asyncio.Task[None]] = []
    for flushes in range(1, 9):
        flush = asyncio.create_task(asyncio.to_thread(flush_scripts, nodes))
        while not flush.done() and len(sends) < flushes * 200:
            # The sends do not wait for each other.
            message = {"type": "test", "n": len(sends) + 1}
            sends.append(asyncio.create_task(layer.send("work", message)))
            await asyncio.sleep(0)
        await flush
        await soon(sends[-1])
    await asyncio.gather(*sends)
    taken = await take(layer, "work", len(sends) + 1)
    assert [message["n"] for message in taken] == [*range(len(sends) + 1)]
    await layer.close()


def flush_scripts(nodes: list[CacheServer]) -> None:
    for node in nodes:
        node.execute("SCRIPT", "FLUSH")
