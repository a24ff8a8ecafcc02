"""Random schedules on a server with prepared frames: what each client gets agrees with a model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

from django_sockets.conf import load_config
from django_sockets.delivery.envelope import Publisher
from django_sockets.runtime import shared_hub
from django_sockets.sockets import BaseSocketServer
from support.frame_server import FrameConnection

SCHEDULES = int(os.environ.get("DJANGO_SOCKETS_SCHEDULES", "1000"))
GROUPS = 20
STEPS = 25
CHANNELS = ("a", "b", "c")


class Member(BaseSocketServer):
    """Notes its object, so that the schedule can call it."""

    config = "memory://schedules"
    outbox_messages = 10_000
    made: Any = []  # noqa: RUF012

    async def connect(self) -> None:
        Member.made.append(self)
        await self.async_subscribe(CHANNELS)


class Telling(Member):
    async def gap(self, channels: Sequence[str], reason: str) -> None:
        for _ in range(random.randrange(3)):
            await asyncio.sleep(0)
        await self.async_send({"gap": list(channels)})


class Model:
    """One client: its connection, and what it must get.

    Attributes:
        due: the broadcasts of each channel that it must get, in order.
        own: the number of its own sends so far.
        gaps: the number of the last broadcast before each gap.
    """

    def __init__(self, client: FrameConnection, socket: Any) -> None:
        self.client = client
        self.socket = socket
        self.due: dict[str, list[Any]] = {name: [] for name in CHANNELS}
        self.own = 0
        self.gaps: list[int] = []
        self.closed = False
        self.sending: list[asyncio.Future[None]] = []

    def check(self) -> None:
        """Order, no repetition, nothing torn (it would not parse), nothing after the close."""
        got = [one for one in self.client.got if not isinstance(one, dict)]
        own = [int(one[1]) for one in got if one[0] == "own"]
        assert own == list(range(len(own)))
        assert self.closed or len(own) == self.own
        for name, due in self.due.items():
            messages = [one[1] for one in got if one[0] == name]
            if self.closed:
                assert messages == due[: len(messages)]
            else:
                assert messages == due
        if isinstance(self.socket, Telling):
            self.check_gaps()

    def check_gaps(self) -> None:
        """The state that `gap` sends is behind all earlier messages and before all later ones."""
        waiting = list(self.gaps)
        for one in self.client.got:
            if isinstance(one, dict):
                waiting.pop(0)
            elif one[0] in CHANNELS:
                assert not waiting or one[1] <= waiting[0]
        assert self.closed or not waiting


class Schedule:
    """Steps on three clients, chosen by a seed."""

    def __init__(self, seed: int, models: list[Model]) -> None:
        self.random = random.Random(seed)
        self.models = models
        self.hub = shared_hub(load_config(Member.config))
        self.publisher = Publisher()
        self.number = 0

    async def run(self) -> None:
        steps = [
            self.broadcast,
            self.broadcast,
            self.broadcast,
            self.send,
            self.stop_reading,
            self.go_on_reading,
            self.gap,
            self.leave_channel,
            self.turn,
            self.turn,
        ]
        for _ in range(STEPS):
            await self.random.choice(steps)()
        if self.random.random() < 0.3:
            await self.close()
            await self.broadcast()
            await self.send()
        for model in self.models:
            model.client.go_on_reading()
        for model in self.models:
            await asyncio.wait_for(asyncio.gather(*model.sending), 20)
        await self.settled()
        for model in self.models:
            model.check()

    async def settled(self) -> None:
        async def quiet() -> None:
            for model in self.models:
                connection = model.socket._connection
                while connection.is_alive and not (  # noqa: ASYNC110 - no event tells
                    connection.outbox.idle and connection.outbox.empty and connection.outbox.direct
                ):
                    await asyncio.sleep(0)

        await asyncio.wait_for(quiet(), 20)
        for _ in range(3):
            await asyncio.sleep(0)

    async def broadcast(self) -> None:
        batch = []
        sender = self.random.choice(self.models)
        for _ in range(self.random.randint(1, 12)):
            name = self.random.choice(CHANNELS)
            self.number += 1
            excluded = None
            if self.random.random() < 0.2:
                excluded = sender
            origin = None if excluded is None else excluded.socket._connection.own_id()
            (header,) = self.publisher.headers([name], True, origin)
            filler = "x" * self.random.choice([0, 0, 0, 120, 700])
            text = f'["{name}",{self.number},"{filler}"]'.encode()
            batch.append((name, header + text))
            for model in self.models:
                if model is not excluded and not model.closed and self._is_on(model, name):
                    model.due[name].append(self.number)
        waiting = self.hub.deliver_now(batch)
        if waiting is not None:
            await asyncio.wait_for(waiting, 20)

    def _is_on(self, model: Model, name: str) -> bool:
        channel = self.hub.subscriptions.channels.get(name)
        return channel is not None and channel.has(model.socket._connection.delivery)

    async def send(self) -> None:
        model = self.random.choice(self.models)
        call = model.socket.async_send(["own", model.own])
        model.own += not model.closed
        model.sending.append(asyncio.ensure_future(call))
        await asyncio.sleep(0)  # It takes its place in the queue now.

    async def stop_reading(self) -> None:
        self.random.choice(self.models).client.stop_reading()

    async def go_on_reading(self) -> None:
        self.random.choice(self.models).client.go_on_reading()

    async def gap(self) -> None:
        name = self.random.choice(CHANNELS)
        for model in self.models:
            if self._is_on(model, name):
                model.gaps.append(self.number)
        self.hub.lost([name], "link lost")

    async def leave_channel(self) -> None:
        model = self.random.choice(self.models)
        if self.random.random() < 0.2:
            name = self.random.choice(CHANNELS)
            await model.socket.async_unsubscribe(name)

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        model = self.random.choice(self.models)
        model.closed = True
        model.client.go_on_reading()
        await model.socket.async_close(4000)


@pytest.mark.parametrize("group", range(GROUPS))
async def test_random_schedules_agree_with_the_model(group: int) -> None:
    """DJANGO_SOCKETS_SCHEDULES sets the number; the default is 1,000."""
    for seed in range(group, SCHEDULES, GROUPS):
        kinds = [Member, Telling, random.Random(seed).choice([Member, Telling])]
        async with contextlib.AsyncExitStack() as stack:
            models = []
            for kind in kinds:
                Member.made.clear()
                deflate = 12 if seed % 3 == 0 else 0
                connection = FrameConnection(kind.as_asgi, deflate=deflate)
                client = await stack.enter_async_context(connection)
                while not _ready():  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0)
                models.append(Model(client, Member.made[0]))
            try:
                await Schedule(seed, models).run()
            except AssertionError as exc:
                raise AssertionError(f"seed {seed}: {exc}") from exc


def _ready() -> bool:
    """`connect` of the last client has returned, and broadcasts do not wait for it any more."""
    return bool(Member.made) and Member.made[0]._connection.outbox.direct
