"""The lease of one hub at one server, and which processes are dead by that server's clock."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterable
from typing import Protocol

from ...errors import BrokerClosed
from ...overrides import Timer
from ...presence import ADOPTED_AT_ONCE, LeaseAction, LeaseReply, LeaseState
from .context import RETRY_SECONDS, Context

__all__ = ["Lease", "LeaseOwner"]

MARGIN_SECONDS = 0.01
"""Time to wait after the end of a lease of another process, before the server is asked again."""
LEAST_SECONDS = 0.02
"""The least time between two looks."""


class LeaseOwner(Protocol):
    """The presence of the hub, as a lease knows it."""

    def others_at(self, lease: Lease) -> Iterable[str]:
        """The processes with entries on the watched channels of its server, except this one."""

    def lease_checked(self, lease: Lease) -> None:
        """The server has told which processes are dead."""

    def lease_replaced(self, lease: Lease, old: Collection[str]) -> None:
        """The lease was lost: put all entries under the new id, and remove those of older ids."""


class Lease:
    """The lease of this hub at one server. Without entries, it only looks which others are dead.

    Attributes:
        server: the name of the server.
        process: the present id of this hub there. It is never used again once its lease has ended.
        held: the server has taken the lease, as far as it is known.
        dead: the processes whose lease has ended.
    """

    def __init__(self, server: str, owner: LeaseOwner, context: Context) -> None:
        self.server = server
        self.process = new_process()
        self.held = False
        self.dead: Collection[str] = frozenset()
        self._seconds = context.url.options.presence_lease_seconds
        self._owner = owner
        self._context = context
        self._lost: list[str] = []
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._running = False
        self._waiting: list[asyncio.Future[None]] = []

    async def begin(self) -> None:
        """Take the lease, unless it is held already.

        Raises:
            PresenceError, BrokerClosed: see `SupportsPresence.lease`.
        """
        if not self.held:
            await self.confirm()

    async def confirm(self) -> None:
        """Renew the lease now. If it has ended, the hub has a new one afterwards.

        Raises:
            PresenceError, BrokerClosed: see `SupportsPresence.lease`.
        """
        future = self._context.new_future()
        self._waiting.append(future)
        self.check()
        await future

    def start(self) -> None:
        """Look from now on which processes are dead."""
        if not self._running:
            self._running = True
            self.check()

    def stop(self) -> None:
        """End the looks, because the hub watches nothing. A lease that is held is renewed on."""
        if not self.held:
            self._running = False
            self._cancel_timer()

    def check(self) -> None:
        """Renew the lease, or look, now."""
        self._cancel_timer()
        if self._task is not None:
            self._again = True
        elif not self._context.closed:
            self._task = self._context.spawn(self._check(), "renew the lease")

    async def look(self, adopt: Collection[str] = ()) -> None:
        """Look which processes are dead, unless the lease does that regularly.

        Raises:
            PresenceError, BrokerClosed: see `SupportsPresence.lease`.
        """
        if adopt or not (self._running or self.held):
            reply = await self._context.broker.lease(
                self.server,
                self.process,
                LeaseAction.LOOK,
                lease_seconds=self._seconds,
                adopt=list(adopt)[:ADOPTED_AT_ONCE],
            )
            self.dead = reply.dead

    async def end(self, grace_seconds: float) -> None:
        """Let the lease end, so that others remove the entries of this hub after the grace.

        Raises:
            PresenceError, BrokerClosed: see `SupportsPresence.lease`.
        """
        if self.held:
            self.held = False
            await self._call(LeaseAction.END, grace_seconds)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _check(self) -> None:
        delay = min(RETRY_SECONDS, self._seconds / 5)
        waiting, self._waiting, self._again = self._waiting, [], False
        try:
            delay = await self._check_once(begin=bool(waiting or self._lost))
            _settle(waiting, None)
        except Exception as exc:
            _settle(waiting, exc)
            self._context.failed("renew the lease", exc)
        except asyncio.CancelledError:
            _settle(waiting + self._waiting, BrokerClosed(self._context.url))
            raise
        finally:
            self._task = None
        if self._again or self._waiting:
            self.check()
        elif self._running or self.held:
            self._timer = self._context.after(delay, self.check)

    async def _check_once(self, *, begin: bool) -> float:
        """Call the server once, or twice if the lease was lost.

        Args:
            begin: take a lease if there is none.

        Returns:
            The time until the next call.
        """
        if self.held:
            reply = await self._call(LeaseAction.RENEW)
            if reply.state is LeaseState.OK:
                self._context.counters.presence_renewals += 1
            else:
                self.held = False
                self._lost.append(self.process)
                self.process = new_process()
                begin = True
        elif not begin:
            reply = await self._call(LeaseAction.LOOK)
        if begin and not self.held:
            reply = await self._call(LeaseAction.NEW)
            self.held = True
        self.dead = reply.dead
        if self.held and self._lost:
            self._context.counters.presence_replaced += 1
            lost, self._lost = self._lost, []
            self._owner.lease_replaced(self, lost)
        self._owner.lease_checked(self)
        return self._next(reply)

    def _next(self, reply: LeaseReply) -> float:
        """The time until the next call: a third of a lease, or the end of the next lease."""
        seconds = self._seconds / 3
        if reply.soonest_ms is not None:
            soonest = (reply.soonest_ms - reply.now_ms) / 1000 + MARGIN_SECONDS
            seconds = min(seconds, max(LEAST_SECONDS, soonest))
        return seconds

    async def _call(self, action: LeaseAction, grace_seconds: float = 0) -> LeaseReply:
        dead = self.dead
        others = [one for one in self._owner.others_at(self) if one not in dead]
        return await self._context.broker.lease(
            self.server,
            self.process,
            action,
            lease_seconds=self._seconds,
            grace_seconds=grace_seconds,
            adopt=others[:ADOPTED_AT_ONCE],
        )


def _settle(waiting: Iterable[asyncio.Future[None]], problem: Exception | None) -> None:
    """Let calls return."""
    for future in waiting:
        if future.done():
            continue
        if problem is None:
            future.set_result(None)
        else:
            future.set_exception(problem)
            future.exception()  # Its owner may have been cancelled.


def new_process() -> str:
    """An id that no other process has."""
    return os.urandom(8).hex()
