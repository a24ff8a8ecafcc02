"""Threads, processes, closing, and the text forms of a broker."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading

import pytest

from ...conf import load_config
from ...deadlines import with_deadline
from ...delivery.events import EventQueue
from ...errors import BrokerClosed
from ...hub.hub import open_hub
from ...registry import open_broker
from ..ledger import Ledger, listening
from .base import ContractTests, patient, with_password

SECRET = "s3cr3t/pass@word"  # noqa: S105 - for URLs of servers that ask for none


class LifetimeContract(ContractTests):
    """The threads and processes of a broker, and its cleanup."""

    async def test_threads_with_loops_of_their_own_hear_each_other_in_order(
        self, broker_url: str, room: str
    ) -> None:
        ledgers = [Ledger(f"thread{i}") for i in range(3)]
        url = patient(broker_url)
        async with open_hub(url) as hub, listening(hub, room) as heard:

            async def publish(ledger: Ledger) -> None:
                async with open_hub(url) as own, listening(own, room) as own_heard:
                    for i in range(500):
                        await own.publish(room, ledger.write(room))
                        if not i % 100:
                            await asyncio.sleep(0.001)
                    await own_heard.until_payload(f"{ledger.name} 500 ".encode())

            threads = [asyncio.to_thread(asyncio.run, publish(ledger)) for ledger in ledgers]
            await asyncio.gather(*threads)
            await heard.until_messages(1500)
            assert heard.check(*ledgers) == []
            assert heard.gaps == []

    async def test_a_forked_child_publishes_while_its_parent_goes_on_hearing(
        self, broker_url: str, room: str
    ) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("this platform has no fork")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "ignore::DeprecationWarning", "-c", FORK_SCRIPT, broker_url, room),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await with_deadline(50, process.communicate())
        assert output.decode().split() == ["before", "child", "after"], errors.decode()
        assert process.returncode == 0

    async def test_aclose_leaves_nothing_behind(self, broker_url: str, room: str) -> None:
        gc.collect()
        tasks, threads = asyncio.all_tasks(), _threads()
        hub = open_hub(broker_url)
        async with hub.subscribe(room) as events:
            await hub.publish(room, b"x")
            await anext(events)
            waiting = asyncio.create_task(_read_all(events))
            await asyncio.gather(hub.aclose(), hub.aclose())
            await hub.aclose()
            # A running iteration ends and does not wait forever.
            assert await with_deadline(5, waiting) == 0
        assert asyncio.all_tasks() == tasks
        assert _threads() <= threads
        with pytest.raises(BrokerClosed, match="open a new one"):
            await hub.publish(room, b"x")
        with pytest.raises(BrokerClosed):
            async with hub.subscribe(room):
                pass

    async def test_a_closed_broker_says_so(self, broker_url: str, room: str) -> None:
        unused, used = open_broker(broker_url), open_broker(broker_url)
        await used.subscribe([room])
        await used.publish([room], b"x")
        for broker in (unused, used):
            await broker.aclose()
            await broker.aclose()
            with pytest.raises(BrokerClosed):
                await broker.publish([room], b"x")
            with pytest.raises(BrokerClosed):
                await broker.subscribe([room])

    async def test_no_representation_shows_a_password(self, broker_url: str) -> None:
        url = with_password(broker_url, "someone", SECRET)
        config = load_config(url)
        broker = open_broker(url)
        async with open_hub(url) as hub:
            shown = [f"{x!r} {x!s}" for x in (config, config.url, broker, broker.url, hub)]
            shown += [repr(vars(config)), str(BrokerClosed(broker.url)), str(hub.stats())]
        await broker.aclose()
        assert "someone:***@" in shown[1]
        for text in shown:
            assert "s3cr3t" not in text


def _threads() -> set[threading.Thread]:
    """All threads except those of the event loop's own executor, which looks up host names."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


async def _read_all(events: EventQueue) -> int:
    count = 0
    while await events.next() is not None:
        count += 1
    return count


FORK_SCRIPT = """
import asyncio, gc, os, sys
from django_sockets import open_hub

url, room = sys.argv[1:]

async def child():
    gc.collect()
    async with open_hub(url) as hub, hub.subscribe(room) as events:
        await hub.publish(room, b"child")
        assert (await anext(events)).payload == b"child"

async def parent():
    async with open_hub(url) as hub, hub.subscribe(room) as events:
        async def heard():
            print((await asyncio.wait_for(anext(events), 20)).payload.decode(), flush=True)

        await hub.publish(room, b"before")
        await heard()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                asyncio.run(child())
                status = 0
            finally:
                os._exit(status)
        await heard()
        status = (await asyncio.to_thread(os.waitpid, pid, 0))[1]
        await hub.publish(room, b"after")
        await heard()
        assert status == 0, status

asyncio.run(parent())
"""
