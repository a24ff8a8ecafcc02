"""Publishers that follow a schedule while their servers fail."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from django_sockets import Hub, PublishError, open_hub
from django_sockets.testing.ledger import Ledger

__all__ = ["LEAST_SHARE", "PER_SECOND", "Failure", "Numbered", "Traffic"]

LEAST_PER_SECOND = 2000
"""A phase without a fault that carries less is no proof of anything, and fails."""
PER_SECOND = 2400
LEAST_SHARE = LEAST_PER_SECOND / PER_SECOND
TICK_SECONDS = 0.01
LAST_TRIES = 5
IN_FLIGHT = 16
"""Publishes of one publisher on one channel that may wait at a time; more are not begun."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A publish that raised PublishError.

    Attributes:
        began: loop time of the call.
        seconds: the duration of the call.
        unknown: the message may have been published; otherwise it certainly was not.
    """

    channel: str
    publisher: str
    number: int
    began: float
    seconds: float
    unknown: bool
    problem: str


class Numbered(Ledger):
    """A ledger that shows the number of its last message."""

    @property
    def last(self) -> int:
        return self._number


class Traffic:
    """Publishes messages of several hubs on many channels, in turn.

    Attributes:
        ledgers: what each hub has published or tried to.
        failures: publishes that raised, in the order in which they ended.
        accepted: how many publishes returned.
        per_second: how many publishes are begun in a second.
        skipped: how many publishes were not started, because too many waited on their channel.
    """

    def __init__(
        self, hubs: Sequence[Hub], channels: Sequence[str], per_second: int = PER_SECOND
    ) -> None:
        self.channels = channels
        self.per_second = per_second
        self._hubs = hubs
        self.ledgers = [Numbered(f"publisher{number}") for number in range(len(hubs))]
        self.failures: list[Failure] = []
        self.accepted = 0
        self.skipped = 0
        publishers = list(zip(hubs, self.ledgers, strict=True))
        self._turns = [(hub, ledger, channel) for channel in channels for hub, ledger in publishers]
        self._in_flight = {(ledger.name, channel): 0 for _, ledger, channel in self._turns}
        self._calls: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._leaving = False

    @classmethod
    async def start(
        cls, url: str, publishers: int, channels: Sequence[str], per_second: int = PER_SECOND
    ) -> Traffic:
        """Open the hubs on the running loop."""
        return cls([open_hub(url) for _ in range(publishers)], channels, per_second)

    async def aclose(self) -> None:
        """Close the hubs."""
        for hub in self._hubs:
            await hub.aclose()

    async def run(self) -> None:
        """Publish by schedule until `stop`. Return when every call has ended."""
        began, done = self._loop.time(), 0
        while not self._leaving:
            due = int((self._loop.time() - began) * self.per_second)
            # A turn that comes late catches up with a second of the schedule at most.
            for turn in range(max(done, due - self.per_second), due):
                self._begin(*self._turns[turn % len(self._turns)])
            done = due
            await asyncio.sleep(TICK_SECONDS)
        if self._calls:
            await asyncio.wait(list(self._calls))

    def stop(self) -> None:
        self._leaving = True

    def _begin(self, hub: Hub, ledger: Numbered, channel: str) -> None:
        if self._in_flight[ledger.name, channel] >= IN_FLIGHT:
            self.skipped += 1
            return
        self._in_flight[ledger.name, channel] += 1
        # Tasks take their first steps, and so make the calls, in the order of their creation.
        call = self._loop.create_task(self._one(hub, ledger, channel), name="load")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _one(self, hub: Hub, ledger: Numbered, channel: str) -> None:
        try:
            await self.publish(hub, ledger, channel)
        finally:
            self._in_flight[ledger.name, channel] -= 1

    async def publish(self, hub: Hub, ledger: Numbered, channel: str) -> bytes | None:
        """Publish one message and record the result. Return None if the publish failed."""
        payload, number, began = ledger.write(channel), ledger.last, self._loop.time()
        try:
            await hub.publish(channel, payload)
        except PublishError as exc:
            took = self._loop.time() - began
            unknown = bool(exc.unknown)
            problem = exc.problem.partition("; not published")[0].partition("; outcome")[0]
            self.failures.append(
                Failure(channel, ledger.name, number, began, took, unknown, problem)
            )
            return None
        self.accepted += 1
        return payload

    async def last_words(self) -> set[tuple[str, bytes]]:
        """Publish a last message of each hub on each channel.

        A server may still pause for a moment, because it forks for a replica that has returned.

        Raises:
            AssertionError: none of LAST_TRIES was accepted.
        """
        said = set()
        for turn in self._turns:
            for _ in range(LAST_TRIES):
                payload = await self.publish(*turn)
                if payload is not None:
                    break
            assert payload is not None, f"the last message failed: {self.failures[-1]}"
            said.add((turn[2], payload))
        return said
