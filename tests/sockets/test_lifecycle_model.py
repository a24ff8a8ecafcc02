"""One socket keeps its promises for any order of events: random lives, compared with a model.

A failure prints the steps that lead to it, shortened; the same steps are tried in every run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from django_sockets.broadcaster import Broadcaster
from django_sockets.connection import receive_loop
from django_sockets.connection.admission import admit
from django_sockets.runtime import close_shared_hubs, shared_hub
from django_sockets.sockets import BaseSocketServer

NUMBERS = itertools.count()
CHANNELS = st.sampled_from(["a", "b"])
WAIT_SECONDS = 5
USUAL_SECONDS = receive_loop.READ_AHEAD_AFTER_SECONDS


class HandlerError(Exception):
    pass


class Life(BaseSocketServer):
    """Does what the frames ask for, and records everything."""

    def __init__(self, *arguments: Any, machine: LifeMachine) -> None:
        super().__init__(*arguments, config=machine.url)
        self.machine = machine

    async def connect(self) -> None:
        machine = self.machine
        state = self.send_state if machine.holding else None
        await self.handle("connect", machine.fails["connect"], state)

    async def send_state(self) -> None:
        await self.async_subscribe("a")
        self.machine.subscribed.add("a")
        await self.machine.state_read.wait()
        await self.async_send(["state", 0])

    async def receive(self, data: Any) -> None:
        await self.handle(data["n"], data["do"] == "fail")
        channel = data.get("channel")
        if data["do"] == "subscribe":
            await self.async_subscribe(channel)
            self.machine.subscribed.add(channel)
        elif data["do"] == "unsubscribe":
            await self.async_unsubscribe(channel)
            self.machine.subscribed.discard(channel)
        elif data["do"] == "close":
            await self.async_close(4000)

    async def async_close(self, code: int = 1000) -> None:
        if self.is_alive and isinstance(self.machine.handled[-1], int):
            self.machine.ended_by.append(self.machine.handled[-1])
        await super().async_close(code)  # Does nothing once the client has left.

    async def disconnect(self, code: int) -> None:
        self.machine.disconnects.append(code)
        await self.handle("disconnect", self.machine.fails["disconnect"])
        await self.async_send("after the end")
        await self.async_subscribe("a")

    async def handle(
        self, name: Any, fails: bool, work: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        machine = self.machine
        assert not machine.inside, f"{name} while {machine.inside}"
        machine.inside = name
        machine.handled.append(name)
        try:
            for _ in range(machine.turns):
                await asyncio.sleep(0)  # Room for another handler to come in between.
            if work is not None:
                await work()
        finally:
            machine.inside = None  # Also when the server has cancelled it.
        if fails:
            raise HandlerError


class LifeMachine(RuleBasedStateMachine):
    """One connection, and the conditions that it must meet."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.url = f"memory://life-{next(NUMBERS)}"
        self.inside: Any = None
        self.handled: list[Any] = []
        self.disconnects: list[int] = []
        self.subscribed: set[str] = set()
        self.fails = {"connect": False, "disconnect": False}
        self.sent_frames: list[int] = []
        self.events: list[dict[str, Any]] = []
        self.expected: dict[str, list[int]] = {"a": [], "b": []}
        self.holding = False  # `connect` is between its subscription and the state.
        self.released = False
        self.state_read = asyncio.Event()
        self.held: list[int] = []
        self.number = 0
        self.ended_by: list[int] = []
        self.over = False
        self.turns = 1
        self.gate = asyncio.Event()
        self.gate.set()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, WAIT_SECONDS))

    @initialize(
        connect_fails=st.booleans(),
        disconnect_fails=st.booleans(),
        connects=st.booleans(),
        slow=st.booleans(),
        holds=st.booleans(),
    )
    def begin(
        self, connect_fails: bool, disconnect_fails: bool, connects: bool, slow: bool, holds: bool
    ) -> None:
        self.holding = holds
        if slow:  # So that a second task reads ahead.
            self.turns = 5
            receive_loop.READ_AHEAD_AFTER_SECONDS = 0.0
        self.fails = {"connect": connect_fails and disconnect_fails, "disconnect": disconnect_fails}
        self.connects = connects or not connect_fails
        self.run(self._begin())

    async def _begin(self) -> None:
        self.to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def send(event: dict[str, Any]) -> None:
            await self.gate.wait()
            self.events.append(event)

        scope = {"type": "websocket", "path": "/", "headers": []}
        self.socket = Life(scope, self.to_app.get, send, machine=self)
        self.served = asyncio.ensure_future(self._serve_socket())
        self.broadcaster = Broadcaster(self.url)
        first = "websocket.connect" if self.connects else "websocket.disconnect"
        self.to_app.put_nowait({"type": first})
        if not self.connects:
            self.over = True

    async def _serve_socket(self) -> None:
        if await admit(self.socket._connection):
            await self.socket._connection.serve()

    def frame(self, do: str, **more: Any) -> None:
        self.number += 1
        self.sent_frames.append(self.number)
        text = json.dumps({"n": self.number, "do": do, **more})
        self.to_app.put_nowait({"type": "websocket.receive", "text": text})

    alive = precondition(lambda self: not self.over)

    @alive
    @rule()
    def the_client_sends(self) -> None:
        self.frame("note")

    @alive
    @rule(channel=CHANNELS)
    def it_subscribes(self, channel: str) -> None:
        self.frame("subscribe", channel=channel)

    @alive
    @rule(channel=CHANNELS)
    def it_unsubscribes(self, channel: str) -> None:
        self.frame("unsubscribe", channel=channel)

    @alive
    @rule()
    def a_handler_fails(self) -> None:
        self.frame("fail")

    @alive
    @rule()
    def a_handler_closes(self) -> None:
        self.frame("close")

    @rule(channel=CHANNELS)
    def somebody_broadcasts(self, channel: str) -> None:
        self.number += 1
        # Only what is sure counts: neither a subscribe nor an unsubscribe is under way.
        quiet = (
            self.to_app.empty()
            and not self.inside
            and not self.socket._connection.receive_loop.busy
        )
        if quiet and channel in self.subscribed and self.open and self.gate.is_set():
            self.expected[channel].append(self.number)
        if self.holding and channel in self.subscribed and self.open:
            self.held.append(self.number)
        self.run(self.broadcaster.async_broadcast(channel, [channel, self.number]))

    @property
    def open(self) -> bool:
        return not (
            self.over or self.socket._connection.closing or self.disconnects or self.served.done()
        )

    @precondition(lambda self: self.holding or self.released)
    @rule()
    def connect_sends_the_state_and_returns(self) -> None:
        held, self.holding = self.holding, False
        self.state_read.set()
        self.time_passes(32)
        if held and not self.fails["connect"]:
            self.what_was_held_comes()

    @precondition(lambda self: self.holding)
    @rule()
    def the_broadcasts_are_released(self) -> None:
        self.holding = False
        self.released = True
        self.run(self.socket.async_release())
        self.what_was_held_comes()

    def what_was_held_comes(self) -> None:
        if self.open and self.gate.is_set():
            self.expected["a"] += self.held

    @rule(turns=st.integers(1, 8))
    def time_passes(self, turns: int) -> None:
        async def pass_time() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(pass_time())

    @rule()
    def the_client_stops_reading(self) -> None:
        self.gate.clear()

    @rule()
    def the_client_reads_on(self) -> None:
        self.gate.set()

    @alive
    @rule(channel=CHANNELS)
    def a_broadcast_comes_while_a_close_is_stuck(self, channel: str) -> None:
        self.frame("subscribe", channel=channel)
        self.time_passes(16)
        self.gate.clear()
        self.frame("close")
        self.time_passes(8)
        self.somebody_broadcasts(channel)
        self.gate.set()
        self.time_passes(8)

    @alive
    @rule()
    def the_client_leaves(self) -> None:
        self.over = True
        self.to_app.put_nowait({"type": "websocket.disconnect", "code": 1001})

    @alive
    @rule()
    def the_server_shuts_down(self) -> None:
        self.over = True
        self.served.cancel()

    def teardown(self) -> None:
        receive_loop.READ_AHEAD_AFTER_SECONDS = USUAL_SECONDS
        try:
            self.gate.set()
            self.state_read.set()
            if hasattr(self, "served"):
                self.run(self._end())
                assert asyncio.all_tasks(self.loop) == set()
        finally:
            for task in asyncio.all_tasks(self.loop):  # Of a life that failed.
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    async def _end(self) -> None:
        if not self.over:
            self.to_app.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await asyncio.wait([self.served], timeout=WAIT_SECONDS)
        assert self.served.done(), "the socket did not end"
        if not self.served.cancelled():
            assert self.served.exception() is None
        connected = self.connects and "connect" in self.handled
        accepted = {"type": "websocket.accept"} in self.events
        # `disconnect` exactly once, after everything else.
        if connected:
            assert len(self.disconnects) == 1
            assert self.handled[-1] == "disconnect"
            assert self.handled[0] == "connect"
        elif not accepted and not self.connects:
            assert self.handled == []
        # Frames in order, none twice, none left out before the end.
        numbers = [name for name in self.handled if isinstance(name, int)]
        assert numbers == self.sent_frames[: len(numbers)]
        # Nothing is handled after what has ended it.
        assert self.ended_by in ([], numbers[-1:])
        # Nothing before the accept, nothing after the close, one close at most.
        kinds = [event["type"] for event in self.events]
        assert kinds.count("websocket.accept") == (1 if accepted else 0)
        if kinds:
            assert kinds[0] == "websocket.accept"
        if "websocket.close" in kinds:
            assert kinds.index("websocket.close") == len(kinds) - 1
        assert not any("after the end" in event.get("text", "") for event in self.events)
        self._broadcasts_came()
        # Nothing is left behind.
        hub = shared_hub(self.socket._connection.config)
        assert hub.channels_of(self.socket) == frozenset()
        assert not hub.holds._ends
        # What was delivered was sent or is counted. (An own `send` that was lost is counted, too.)
        stats = hub.stats()
        sent = sum(name in self.expected for name, _ in self.sends())
        assert stats["delivered"] - sent <= stats["discarded"]
        await self.broadcaster.aclose()
        await close_shared_hubs()
        await asyncio.sleep(0)

    def _broadcasts_came(self) -> None:
        for channel, expected in self.expected.items():
            came = [number for name, number in self.sends() if name == channel]
            assert came == sorted(set(came))
            assert self.missing(expected, came) == []
        # The state comes first.
        names = [name for name, _ in self.sends()]
        if "state" in names and not self.released:
            assert names[0] == "state"

    def sends(self) -> list[tuple[str, int]]:
        return [
            json.loads(event["text"]) for event in self.events if event["type"] == "websocket.send"
        ]

    def missing(self, expected: list[int], came: list[int]) -> list[int]:
        """The broadcasts that an open and subscribed socket should have got and did not get."""
        return [number for number in expected if number not in came]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="django_sockets")


@pytest.mark.timeout(300)  # Seconds when it passes; a failure takes its time to be shortened.
@pytest.mark.usefixtures("quiet")
def test_random_lives_of_one_socket_keep_every_promise() -> None:
    run_state_machine_as_test(
        LifeMachine,
        settings=settings(
            max_examples=150,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
