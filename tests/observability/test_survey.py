"""What operators learn from a survey of all processes.

If one of these fails, the live page and `sockets top` show wrong figures, or miss a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from django_sockets import Hub, open_hub
from django_sockets.conf import load_config
from django_sockets.deadlines import with_deadline
from django_sockets.errors import BrokerError
from django_sockets.hub.hub import CONTROL
from django_sockets.hub.survey import listener
from django_sockets.hub.survey.asking import Answer, Survey
from django_sockets.hub.survey.messages import pack_answer, read_answer
from django_sockets.hub.survey.report import LONGEST_LIST, LONGEST_TEXT, report_of_process
from django_sockets.observability.live.overview import Snapshot
from django_sockets.observability.live.watching import answer_surveys, snapshots
from django_sockets.runtime import background_loop, close_shared_hubs, shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import SocketClient
from django_sockets.testing.contract.base import with_options
from django_sockets.testing.contract.faults import quick
from django_sockets.testing.proxy import FaultProxy
from django_sockets.testing.servers import CacheServer
from support.loop_thread import LoopThread
from support.slow_client import Reluctant

PATIENCE_SECONDS = 20
WINDOW_SECONDS = 0.1


class Room(BaseSocketServer):
    async def connect(self) -> None:
        await self.async_subscribe("everybody")
        await self.async_send("ready")


class Board(Room):
    pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"memory://survey-{uuid.uuid4().hex}"
    monkeypatch.setattr(listener, "BEGIN_SECONDS", 0)
    monkeypatch.setattr(BaseSocketServer, "config", url)
    return url


@pytest.fixture
async def asking(url: str) -> AsyncIterator[Hub]:
    """The hub of an operator, as in another process."""
    async with open_hub(with_options(url, log_interval_seconds=9)) as hub:
        yield hub
    await close_shared_hubs()


def serving_hub() -> Hub:
    """The hub of the sockets on this loop."""
    return shared_hub(load_config(BaseSocketServer.config))


async def entered(socket_class: type[BaseSocketServer], **tags: str) -> SocketClient:
    client = SocketClient(socket_class.as_asgi, scope={"django_sockets.tags": tags})
    await client.connect()
    assert await client.receive_json(PATIENCE_SECONDS) == "ready"
    return client


async def answer(survey: Survey, fits: Callable[[Answer], bool] = lambda _: True) -> Answer:
    """The first answer that fits; questions before a process listens are not answered."""

    async def ask() -> Answer:
        while True:
            for one in (await survey.ask(WINDOW_SECONDS)).answers:
                if fits(one):
                    return one

    return await with_deadline(PATIENCE_SECONDS, ask())


async def test_a_process_reports_its_sockets_users_and_channels(asking: Hub) -> None:
    clients = [await entered(Room, user="7"), await entered(Room), await entered(Board, user="7")]
    async with Survey(asking) as survey:
        report = (await answer(survey)).report
    assert report["state"] == "serving"
    assert report["sockets"] == {"Room": 2, "Board": 1}
    assert report["users"] == [("7", 2)]
    assert report["channels"] == [("everybody", 3)]
    assert report["numbers"]["sockets"] == 3
    for client in clients:
        await client.close()


async def test_the_last_client_that_leaves_makes_the_process_idle(asking: Hub) -> None:
    """It must not look like a process that was killed."""
    client = await entered(Room)
    async with Survey(asking) as survey:
        await answer(survey)
        await client.close()
        last = await answer(survey, lambda one: one.report["state"] == "idle")
        assert (last.seconds, last.report["numbers"]["sockets"]) == (None, 0)
        assert (await survey.ask(WINDOW_SECONDS)).answers == []
        client = await entered(Room)
        assert (await answer(survey)).report["state"] == "serving"
        await client.close()


async def test_a_process_that_ends_says_so(asking: Hub) -> None:
    client = await entered(Room)
    async with Survey(asking) as survey:
        await answer(survey)
        await close_shared_hubs()
        await answer(survey, lambda one: one.report["state"] == "ended")
    await client.close()


async def test_a_process_that_shuts_down_is_draining(asking: Hub) -> None:
    client = await entered(Room)
    async with Survey(asking) as survey:
        await answer(survey)
        serving_hub().connections.draining = True
        await answer(survey, lambda one: one.report["state"] == "draining")
    await client.close()


async def test_several_loops_of_a_process_answer_once_for_all(asking: Hub) -> None:
    """Each loop has a hub of its own; an operator sees one process."""
    here = await entered(Room)
    with LoopThread() as other:
        there = other.run(entered(Room))
        async with Survey(asking) as survey:
            both = await answer(survey, lambda one: one.report["sockets"] == {"Room": 2})
            assert both.report["channels"] == [("everybody", 2)]
            answers = (await survey.ask(WINDOW_SECONDS)).answers
            assert [one.report["numbers"]["sockets"] for one in answers] == [2]
            # One of the two hubs is idle: the process is not.
            other.run(there.close())
            alone = await answer(survey, lambda one: one.report["sockets"] == {"Room": 1})
            assert alone.report["state"] == "serving"
        other.run(close_shared_hubs())
    await here.close()


async def test_a_slow_client_is_named(asking: Hub) -> None:
    class Narrow(Room):
        outbox_messages = 4
        overflow = "drop_newest"

        async def authorize(self) -> bool:
            self.tags["user"] = "7"
            return True

    async with Survey(asking) as survey, Reluctant(Narrow.as_asgi) as client:
        await client.until(lambda: client.got == ["ready"])
        client.stop_reading()
        for number in range(40):
            await asking.publish("everybody", b"%d" % number, is_text=True)
        found = await answer(survey, lambda one: bool(one.report["slow"]))
        (slow,) = found.report["slow"]
        assert (slow["socket"], slow["user"]) == ("Narrow", "7")
        assert 1 <= slow["messages"] <= 4
        assert slow["bytes"] > 0
        assert found.report["numbers"]["slow_clients"] == 1
        client.go_on_reading()
        await answer(survey, lambda one: one.report["slow"] == [])


WRONG_QUESTIONS = [
    {"survey": None},
    {"survey": []},
    {"survey": {}},
    {"survey": {"id": 1, "answers": "0" * 16}},
    {"survey": {"id": "0" * 16, "answers": "room:1"}},
    {"survey": {"id": "0" * 16, "answers": "0" * 15}},
    {"survey": {"id": "0" * 17, "answers": "0" * 16}},
    {"survey": {"id": "0" * 16, "answers": "0" * 15 + "\n"}},
    [],
    "survey",
]


@pytest.mark.parametrize("wrong", WRONG_QUESTIONS, ids=json.dumps)
async def test_a_wrong_question_makes_nobody_publish(asking: Hub, wrong: object) -> None:
    """Otherwise a message on the control channel could send reports to a channel of users."""
    client = await entered(Room)
    async with Survey(asking) as survey:
        await answer(survey)
        before = serving_hub().stats()["published"]
        await asking.publish_control(json.dumps(wrong).encode())
        await answer(survey)  # The process has seen the wrong one before, and still answers.
        assert serving_hub().stats()["published"] == before + 1
    await client.close()


async def test_a_report_is_bounded(asking: Hub) -> None:
    (shared := shared_hub(asking.config)).surveys.stay()
    queues = [shared.new_queue() for _ in range(100)]
    for number, queue in enumerate(queues):
        await shared.add(queue, [f"{'long' * 50}:{number}", "popular"])
    report = report_of_process(shared.config.url)
    assert len(report["channels"]) == LONGEST_LIST
    assert report["channels"][0] == ("popular", 100)
    assert all(len(name) <= LONGEST_TEXT for name, _ in report["channels"])
    assert len(pack_answer("0" * 16, report)) < 16_000


async def test_an_answer_survives_its_way_and_unknown_fields(asking: Hub) -> None:
    report = report_of_process(asking.config.url)
    packed = json.loads(pack_answer("1", report))
    packed["report"]["new"] = packed["new"] = 1
    assert read_answer(json.dumps(packed).encode()) == ("1", report)
    del packed["report"]["slow"], packed["report"]["numbers"]
    found = read_answer(json.dumps(packed).encode())
    assert found is not None
    assert (found[1]["slow"], found[1]["numbers"]) == ([], {})
    for wrong in (b"", b"[]", b"{}", b'{"question": "1"}', b'{"question": "1", "report": []}'):
        assert read_answer(wrong) is None


async def test_no_process_without_connections_pays_for_surveys(url: str) -> None:
    """Plain code only publishes: it must not subscribe to anything."""
    async with open_hub(url) as hub:
        await hub.publish("room:1", b"1")
        assert CONTROL not in hub.subscriptions.channels


async def test_a_worker_without_sockets_can_take_part(asking: Hub, url: str) -> None:
    await asyncio.to_thread(answer_surveys, url)
    async with Survey(asking) as survey:
        assert (await answer(survey)).report["sockets"] == {}
    closing = asyncio.run_coroutine_threadsafe(close_shared_hubs(), background_loop())
    await asyncio.wrap_future(closing)


async def test_a_busy_process_answers_late(asking: Hub) -> None:
    """Its answer comes with the next ones, and says how long it took."""
    with LoopThread() as other:
        client = other.run(entered(Room))
        async with Survey(asking) as survey:
            await answer(survey)
            free = threading.Event()
            other.start(blocked_until(free))
            assert (await survey.ask(WINDOW_SECONDS)).answers == []
            free.set()
            late = await answer(survey)
            assert late.seconds is not None
            assert late.seconds > WINDOW_SECONDS
            assert not late.in_time
            assert (await answer(survey)).in_time
        other.run(client.close())
        other.run(close_shared_hubs())


async def blocked_until(free: threading.Event) -> None:
    free.wait(PATIENCE_SECONDS)


async def test_a_lost_connection_of_the_asking_process_is_told(valkey_server: CacheServer) -> None:
    """Otherwise every process would look late for no reason."""
    async with FaultProxy(valkey_server.host, valkey_server.port) as proxy:
        there, here = quick(valkey_server.url), quick(valkey_server.url_at(proxy.port))
        async with open_hub(there) as hub, open_hub(here) as asking:
            hub.surveys.stay()
            async with Survey(asking) as survey:
                await answer(survey)
                proxy.drop()
                await with_deadline(PATIENCE_SECONDS, interrupted(survey))
                assert (await answer(survey)).report["state"] == "serving"


async def interrupted(survey: Survey) -> None:
    while True:
        with contextlib.suppress(BrokerError):
            if (await survey.ask(WINDOW_SECONDS)).interrupted:
                return


async def test_snapshots_go_on_without_a_broker(fresh_valkey_server: CacheServer) -> None:
    """An operator looks at the page when something is broken."""
    url = quick(fresh_valkey_server.url)
    async with open_hub(url) as hub, open_hub(with_options(url, log_interval_seconds=9)) as asking:
        hub.surveys.stay()
        watching = snapshots(asking, interval_seconds=WINDOW_SECONDS, window_seconds=WINDOW_SECONDS)
        async with contextlib.aclosing(watching):

            async def until(fits: Callable[[Snapshot], bool]) -> Snapshot:
                async for snapshot in watching:
                    if fits(snapshot):
                        return snapshot
                raise AssertionError("the snapshots ended")

            def serves(snapshot: Snapshot) -> bool:
                return [one["status"] for one in snapshot["processes"]] == ["serving"]

            first = await with_deadline(PATIENCE_SECONDS, until(serves))
            assert first["broker"] == str(asking.config.url)
            await asyncio.to_thread(fresh_valkey_server.kill)
            broken = await with_deadline(
                PATIENCE_SECONDS, until(lambda one: one["problem"] is not None)
            )
            assert [one["pid"] for one in broken["processes"]] == [os.getpid()]
            assert "x01" not in str(broken["problem"])
            assert "the library's own channel" in str(broken["problem"])
            await asyncio.to_thread(fresh_valkey_server.restart)
            await with_deadline(
                PATIENCE_SECONDS, until(lambda one: one["problem"] is None and serves(one))
            )
