"""Closing sockets by their tags, in this process and in others."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from django_sockets import ChannelError, ConfigurationError, PublishError, open_hub
from django_sockets.backends.memory import MemoryBroker
from django_sockets.broadcaster import Broadcaster
from django_sockets.closing import (
    async_close_sockets,
    close_local_sockets,
    close_sockets,
    on_missed_orders,
)
from django_sockets.conf import load_config
from django_sockets.connection.connection import Connection
from django_sockets.hub.control import control_of, controls
from django_sockets.hub.hub import CONTROL
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient
from django_sockets.testing.servers import CacheServer

URL = "memory://closing"


class Member(BaseSocketServer):
    config = URL

    async def connect(self) -> None:
        await self.async_send("hello")


def client(app: Any = Member.as_asgi, **tags: str) -> SocketClient:
    """A client whose socket a middleware has tagged."""
    return SocketClient(app, scope={"django_sockets.tags": tags})


@pytest.fixture
async def hub() -> AsyncIterator[Any]:
    """Another member of the bus, as another process is one of a server."""
    async with open_hub("memory://closing?log_interval_seconds=9") as hub:
        yield hub


def test_a_close_without_tags_or_with_a_wrong_code_is_an_error() -> None:
    for wrong in ({}, {"user": None}, {"user": SimpleNamespace(pk=None)}):
        with pytest.raises(ConfigurationError, match="tag"):
            close_sockets(config=URL, **wrong)
    for code in (0, 999, 1005, 1011, 2999, 5000, True, "4401"):
        with pytest.raises(ConfigurationError, match="code"):
            close_local_sockets(code=code, user=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["plain", "thread", "async", "local", "elsewhere"])
async def test_every_socket_with_all_the_tags_is_closed_and_no_other(how: str, hub: Any) -> None:
    user = SimpleNamespace(pk=7)
    async with (
        client(user="7", session="a") as one,
        client(user="7", session="a") as two,
        client(user="7", session="b") as other_session,
        client(user="8", session="a") as other_user,
        SocketClient(Member.as_asgi) as untagged,
    ):
        for each in (one, two, other_session, other_user, untagged):
            assert await each.receive_json() == "hello"
        if how == "plain":
            close_sockets(user=7, session="a", config=URL)
        elif how == "thread":
            await asyncio.to_thread(close_sockets, user=user, session="a", config=URL)
        elif how == "async":
            await async_close_sockets(user=user, session="a", config=URL)
        elif how == "local":
            assert await asyncio.to_thread(close_local_sockets, user="7", session="a") == 2
        else:
            order = {"close": {"tags": {"user": "7", "session": "a"}, "code": 4401, "new": 1}}
            await hub.publish_control(json.dumps({**order, "newer": []}).encode())
        assert [await one.receive_close(), await two.receive_close()] == [4401, 4401]
        for each in (other_session, other_user, untagged):
            assert await each.receive_nothing()


async def test_disconnect_runs_with_the_code_of_the_order() -> None:
    codes: list[int] = []

    class Noting(Member):
        def disconnect(self, code: int) -> None:
            codes.append(code)

    async with client(Noting.as_asgi, user="7") as closed:
        assert close_local_sockets(user=7, code=3000) == 1
        assert await closed.receive_close() == 3000
    assert codes == [3000]


async def test_tags_that_connect_adds_count_even_if_it_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Choosing(Member):
        async def connect(self) -> None:
            self.tags["room"] = "blue"
            await self.async_send("tagged")
            raise LookupError("on purpose")

        async def error(self, exc: Exception) -> None:
            await self.async_send("goes on")

    for tags in ({}, {"user": "7"}):
        async with client(Choosing.as_asgi, **tags) as chosen:
            assert await chosen.receive_json() == "tagged"
            assert await chosen.receive_json() == "goes on"
            await async_close_sockets(room="blue", config=URL, **tags)
            assert await chosen.receive_close() == 4401


async def test_an_order_during_the_handshake_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Connection.join_tags

    async def join(connection: Connection) -> None:
        await original(connection)
        assert close_local_sockets(user=7) == 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    class Slow(Member):
        async def authorize(self) -> None:
            monkeypatch.setattr(Connection, "join_tags", join)

    with pytest.raises(HandshakeRefused) as refused:
        await client(Slow.as_asgi, user="7").connect()
    assert refused.value.status == 403
    assert close_local_sockets(user=7) == 0


async def test_the_control_channel_is_held_only_while_there_are_tagged_sockets() -> None:
    shared = shared_hub(load_config(URL))

    async def settled() -> None:
        keeper = control_of(shared)._keeper
        if keeper is not None:
            await asyncio.wait([keeper])

    async with SocketClient(Member.as_asgi) as untagged:
        await untagged.receive_json()
        assert not shared.channels_of(control_of(shared))
    for _ in range(2):
        async with client(user="7"), client(user="7", session="s"):
            assert shared.channels_of(control_of(shared)) == {CONTROL}
            assert control_of(shared) in controls()
            assert control_of(shared).values("user") == {"7"}
            assert control_of(shared).values("session") == {"s"}
        await settled()
        assert not shared.channels_of(control_of(shared))
        assert control_of(shared).values("user") == set()


async def test_no_user_can_name_the_control_channel(hub: Any) -> None:
    broadcaster = Broadcaster(URL)
    for call in (
        lambda: broadcaster.async_broadcast(CONTROL, {"close": {"tags": {"user": "7"}}}),
        lambda: broadcaster.async_broadcast(["room", CONTROL], {}),
        lambda: broadcaster.async_subscribe(CONTROL),
        lambda: hub.publish(CONTROL, b"{}"),
        lambda: hub.add(hub.new_queue(), CONTROL),
    ):
        with pytest.raises(ChannelError):
            await call()


WRONG_ORDERS = [
    b"",
    b"\xff",
    b"[]",
    b'"close"',
    b'{"close": null}',
    b'{"close": {}}',
    b'{"close": {"tags": {"user": "7"}}}',
    b'{"close": {"tags": {}, "code": 4401}}',
    b'{"close": {"tags": ["user"], "code": 4401}}',
    b'{"close": {"tags": {"user": 7}, "code": 4401}}',
    b'{"close": {"tags": {"user": "7"}, "code": 1011}}',
    b'{"close": {"tags": {"user": "7"}, "code": "4401"}}',
]


async def test_a_malformed_order_is_counted_and_logged_and_has_no_effect(
    hub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shared = shared_hub(load_config(URL))
    async with client(user="7") as member:
        assert await member.receive_json() == "hello"
        before = shared.stats()["poison"]
        for wrong in WRONG_ORDERS:
            await hub.publish_control(wrong)
        await hub.publish_control(b'{"order of a newer version": {}}')
        await hub.publish_control(b'{"close": {"tags": {"user": "7"}, "code": 4402}}')
        assert await member.receive_close() == 4402
        assert shared.stats()["poison"] - before == len(WRONG_ORDERS)
    assert "\\x01control" in caplog.text


@pytest.fixture
def missed() -> Any:
    """Set when orders may have been missed."""
    event = asyncio.Event()
    on_missed_orders.append(event.set)
    yield event
    on_missed_orders.remove(event.set)


async def test_a_lost_link_tells_that_orders_may_have_been_missed(
    missed: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise RuntimeError("on purpose")

    on_missed_orders.insert(0, fails)
    try:
        async with client(user="7"):
            assert not missed.is_set()
            shared_hub(load_config(URL)).lost([CONTROL], "the link was cut")
            assert missed.is_set(), "one callback's failure kept the next from hearing"
    finally:
        on_missed_orders.remove(fails)
    assert "may have been missed: the link was cut" in caplog.text


async def test_a_server_that_is_away_holds_up_only_the_first_handshake_and_comes_back(
    fresh_valkey_server: CacheServer, missed: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{fresh_valkey_server.url}?subscribe_timeout_seconds=0.3&publish_timeout_seconds=0.3"

    class Real(Member):
        config = url

    fresh_valkey_server.kill()
    async with (
        client(Real.as_asgi, user="7") as one,
        client(Real.as_asgi, user="8") as two,
        client(Real.as_asgi, user="9") as three,
    ):
        assert "orders to close sockets do not arrive" in caplog.text
        assert await one.receive_json() == "hello"
        with pytest.raises(PublishError):
            await async_close_sockets(user=8, config=url)
        with pytest.raises(PublishError):
            await asyncio.to_thread(close_sockets, user=9, config=url)
        for closed in (two, three):
            assert await closed.receive_close() == 4401, "the local ones close whatever happens"
        fresh_valkey_server.start()
        await asyncio.wait_for(missed.wait(), 10)
        await (
            control_of(shared_hub(load_config(url)))
            ._hub()
            .publish_control(  # type: ignore[union-attr]
                b'{"close": {"tags": {"user": "7"}, "code": 4403}}'
            )
        )
        assert await one.receive_close() == 4403


async def test_a_server_that_does_not_answer_holds_up_a_handshake_for_a_second_at_most(
    missed: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not refused: when the server answers, missed orders are made up for."""
    answers = asyncio.Event()

    class Silent(MemoryBroker):
        async def subscribe(self, channels: Sequence[str]) -> None:
            await answers.wait()
            await super().subscribe(channels)

    silent = dataclasses.replace(load_config("memory://silent"), open_broker=Silent)

    class Patient(Member):
        config = silent

    loop = asyncio.get_running_loop()
    began = loop.time()
    async with client(Patient.as_asgi, user="7") as first:
        assert 0.9 < loop.time() - began < 3
        assert "do not arrive: no answer for 1 s" in caplog.text
        began = loop.time()
        async with client(Patient.as_asgi, user="7"):
            assert loop.time() - began < 0.5, "each handshake waited again"
        assert not missed.is_set()
        answers.set()
        await asyncio.wait_for(missed.wait(), 5)
        await shared_hub(load_config(silent)).publish_control(
            b'{"close": {"tags": {"user": "7"}, "code": 4403}}'
        )
        assert await first.receive_json() == "hello"
        assert await first.receive_close() == 4403


PROCESS = """
    import asyncio, sys
    from django_sockets.closing import close_sockets
    from django_sockets.sockets import BaseSocketServer
    from django_sockets.testing.client import SocketClient

    class Member(BaseSocketServer):
        config = sys.argv[1]

    async def main():
        def client(user):
            return SocketClient(Member.as_asgi, scope={"django_sockets.tags": {"user": user}})
        async with client("7") as seven, client("8") as eight:
            print("ready", flush=True)
            print(await seven.receive_close(30), await eight.receive_nothing(), flush=True)

    if sys.argv[2:]:
        close_sockets(user=7, config=sys.argv[1])
    else:
        asyncio.run(main())
"""


@pytest.mark.parametrize("closer", ["a loop", "a process without one"])
async def test_sockets_of_other_processes_are_closed(
    valkey_server: CacheServer, closer: str
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), valkey_server.url]
    other = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert await asyncio.wait_for(other.stdout.readline(), 20) == b"ready\n"
    if closer == "a loop":
        await async_close_sockets(user=7, config=valkey_server.url)
    else:
        ended = await asyncio.create_subprocess_exec(*command, "close")
        assert await asyncio.wait_for(ended.wait(), 20) == 0
    assert await asyncio.wait_for(other.stdout.readline(), 20) == b"4401 True\n"
    assert await asyncio.wait_for(other.wait(), 20) == 0


async def test_tags_may_be_read_from_other_threads_while_sockets_come_and_go() -> None:
    seen: list[BaseException | set[str]] = []
    stop = threading.Event()

    def watch(read: Callable[[], Any]) -> None:
        try:
            while not stop.is_set():
                read()
        except BaseException as exc:
            seen.append(exc)

    control = control_of(shared_hub(load_config(URL)))
    reads = (lambda: control.values("user"), lambda: control.matching({"kind": "x"}), controls)
    threads = [threading.Thread(target=watch, args=(read,)) for read in reads]
    # The threads take turns more often than usual, or each step of the loop waits for all of them.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for thread in threads:
        thread.start()
    try:
        for start in range(10):
            clients = [client(user=str(start * 20 + n), kind="x") for n in range(20)]
            for each in clients:
                await each.connect()
            for each in clients:
                await each.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert seen == []


async def test_with_a_configuration_only_its_sockets_are_closed() -> None:
    class Elsewhere(Member):
        config = "memory://closing-elsewhere"

    async with client(user="7") as one, client(Elsewhere.as_asgi, user="7") as other:
        await async_close_sockets(user=7, config=Elsewhere.config)
        assert await other.receive_close() == 4401
        assert await one.receive_json() == "hello"
        assert await one.receive_nothing()


def test_a_forked_child_leaves_the_sockets_of_its_parent_alone() -> None:
    script = """
        import asyncio, os, warnings
        from django_sockets.closing import close_local_sockets
        from django_sockets.hub.control import controls
        from django_sockets.sockets import BaseSocketServer

        warnings.simplefilter("ignore", DeprecationWarning)  # About fork with threads.
        socket = BaseSocketServer({"django_sockets.tags": {"user": "7"}}, asyncio.Queue().get)
        socket.start_listeners()
        socket.subscribe("room")
        while not any(control.values("user") for control in controls()):
            pass
        pid = os.fork()
        if pid == 0:
            os._exit(close_local_sockets(user=7) + len(controls()))
        print(os.waitpid(pid, 0)[1], close_local_sockets(user=7))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.stdout, ended.returncode) == ("0 1\n", 0), ended.stderr
