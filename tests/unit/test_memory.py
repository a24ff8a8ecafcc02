"""The bus inside one process under load: no call waits forever, and no loss is silent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest

from django_sockets import Gap, open_broker, open_hub
from django_sockets.backends import memory_inbox
from django_sockets.testing.contract.base import RecordingSink
from django_sockets.testing.ledger import Ledger, listening


class StuckSink(RecordingSink):
    """Accepts nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def deliver(self, batch: Sequence[tuple[str, bytes]]) -> None:
        await self.go_on.wait()
        await super().deliver(batch)


async def publish_many(url: str, count: int) -> None:
    broker = open_broker(url)
    for i in range(count):
        await broker.publish(["room"], b"%d" % i)
    await broker.aclose()


async def test_a_publisher_waits_for_a_reader_that_is_behind_and_loses_nothing() -> None:
    sink = StuckSink()
    broker = open_broker("memory://behind", sink)
    await broker.subscribe(["room"])
    publishing = asyncio.create_task(publish_many("memory://behind", 3000))
    done, _ = await asyncio.wait([publishing], timeout=0.2)
    assert not done
    sink.go_on.set()
    await asyncio.wait_for(publishing, 5)
    await sink.until("message", "room", b"2999")
    assert [seen[2] for seen in sink.seen] == [b"%d" % i for i in range(3000)]
    await broker.aclose()


async def test_a_publisher_does_not_wait_for_a_reader_that_was_closed() -> None:
    sink = StuckSink()
    broker = open_broker("memory://closed", sink)
    await broker.subscribe(["room"])
    publishing = asyncio.create_task(publish_many("memory://closed", 3000))
    done, _ = await asyncio.wait([publishing], timeout=0.1)
    assert not done
    await broker.aclose()
    await asyncio.wait_for(publishing, 1)


async def test_a_loop_that_hangs_delays_publishers_and_fails_none() -> None:
    sink = StuckSink()
    broker = open_broker("memory://hangs", sink)
    await broker.subscribe(["room"])
    url = "memory://hangs?publish_timeout_seconds=0.01"
    await asyncio.wait_for(publish_many(url, memory_inbox.INBOX_HIGH + 10), 5)
    sink.go_on.set()
    await sink.until("message", "room", b"%d" % (memory_inbox.INBOX_HIGH + 9))
    await broker.aclose()


async def test_what_did_not_fit_is_signalled_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_inbox, "INBOX_FULL", 100)
    ledger = Ledger()
    async with open_hub("memory://full") as hub, listening(hub, "room") as heard:
        await hub.publish("room", ledger.write("room"))
        await heard.until_payload(b"publisher 1 ")

        async def flood() -> None:
            async with open_hub("memory://full") as other:
                for _ in range(500):
                    await other.publish("room", flooding.write("room"))

        flooding = Ledger("flood")
        other = threading.Thread(target=asyncio.run, args=[flood()])
        other.start()
        other.join()  # This loop reads nothing while the other one publishes.
        gap = await heard.until_gap()
        assert heard.events[gap] == Gap(channels=("room",), reason="overflow")
        await hub.publish("room", ledger.write("room"))
        await heard.until_payload(b"publisher 2 ")
        assert heard.check(ledger, flooding) != []


async def test_a_loop_that_ended_without_closing_its_hub_is_forgotten() -> None:
    async def leave() -> None:
        hub = open_hub("memory://left")
        await hub.add(asyncio.get_running_loop(), "room")  # type: ignore[arg-type]

    loop = asyncio.new_event_loop()
    await asyncio.to_thread(loop.run_until_complete, leave())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    await asyncio.to_thread(loop.run_until_complete, asyncio.sleep(0))
    loop.close()
    async with open_hub("memory://left") as hub, listening(hub, "room") as heard:
        for i in range(2000):
            await asyncio.wait_for(hub.publish("room", b"%d" % i), 1)
        await heard.until_payload(b"1999")


def test_a_forked_child_is_told_that_it_is_alone() -> None:
    code = """
import asyncio, logging, os
from django_sockets import open_hub
logging.basicConfig(format="%(message)s")

async def publish():
    async with open_hub("memory://") as hub, hub.subscribe("room") as events:
        await hub.publish("room", b"x")
        assert (await anext(events)).payload == b"x"

asyncio.run(publish())
if not os.fork():
    asyncio.run(publish())
    os._exit(0)
assert os.wait()[1] == 0
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert process.stderr.count("memory:// is a separate bus in this forked process") == 1
