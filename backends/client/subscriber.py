"""One server's messages: the link that carries subscriptions there, for as long as any is wanted.

A supervisor task connects whenever something is wanted. Under it run the reading, the PING deadline
and the delivery probe; whichever finds the link dead ends it, and the supervisor connects again and
asks for everything again. What is asked for and granted is kept by `grants`; what a lost, displaced
or refused channel means is decided by the owner (`subscriptions`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol

from ...broker import Sink
from ...errors import ConnectError
from ...log import LogThrottle
from ...url import BrokerURL
from .commands import Verbs
from .connection import Link, LinkLost, Opener
from .deadlines import Backoff, expect, first_of, keepalive
from .subscription_state import Grants, Owner
from .supervision import Supervisor

__all__ = ["Probe", "Reader"]

logger = logging.getLogger("django_sockets")

HELD_MESSAGES = 65_536
"""Messages that may wait while a link takes over from another; more end the new link."""


class Probe(Protocol):
    """Proves again and again that what is published arrives on a reader's link."""

    def name(self, like: bytes) -> bytes:
        """The name to listen on, on the server that serves the name `like`."""

    def run(self, reader: Reader, link: Link) -> Coroutine[Any, Any, None]:
        """Probe until cancelled. Raises LinkLost."""

    def heard(self, payload: bytes) -> None:
        """A message arrived on the probe's name."""


class Reader:
    """The subscribing connection to one server.

    Args:
        open_link: connects; raises ConnectError.
        probe: None for a server that delivers nothing that we publish.
        link: a first link, for a reader that takes over from another: what is heard there waits
            until `release`, and if it is lost before, `until_settled` says so.

    Attributes:
        trouble: why there is no link at this moment, or None.
    """

    def __init__(
        self,
        url: BrokerURL,
        sink: Sink,
        owner: Owner,
        *,
        open_link: Opener,
        probe: Probe | None,
        verbs: Verbs,
        link: Link | None = None,
    ) -> None:
        self._url = url
        self._sink = sink
        self._open_link = open_link
        self._probe = probe
        self._kind_of_message = verbs.message
        self._backoff = Backoff()
        self._grants = Grants(
            url,
            owner,
            verbs,
            probe_like=None if probe is None else probe.name,
        )
        self.trouble: ConnectError | None = None
        self._task: asyncio.Task[None] | None = None
        self._abort_reason = ""
        self._first = link
        self._gate: asyncio.Event | None = None if link is None else asyncio.Event()
        self._gone: str | None = None
        self._held: list[tuple[str, bytes]] = []
        self._supervisor = Supervisor(url)
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    # What is wanted

    def want(self, channel: str, name: bytes) -> bool:
        """Ask for a channel; True if the server has granted it already."""
        if self._grants.want(channel, name):
            return True
        if self._task is None:
            loop = asyncio.get_running_loop()
            work = self._supervisor.keep("the subscribing connection", self._run)
            self._task = loop.create_task(work, name="django_sockets subscriber")
        return False

    def unwant(self, name: bytes) -> None:
        """Ask for a channel no more; nothing is delivered on it from now on."""
        channel = self._grants.unwant(name)
        if self._held:
            self._held = [item for item in self._held if item[0] != channel]

    def ask_again(self, name: bytes) -> None:
        """Ask once more for a displaced or refused channel, if it is still wanted."""
        self._grants.ask_again(name)

    def grants(self, name: bytes) -> bool:
        """Whether the server has granted this name, and it is wanted."""
        return self._grants.has(name)

    @property
    def wanted(self) -> list[tuple[str, bytes]]:
        """The channels and names that are wanted."""
        return self._grants.wanted

    @property
    def carried(self) -> list[tuple[str, bytes]]:
        """The channels and names that are wanted and granted."""
        return self._grants.carried

    @property
    def link(self) -> Link | None:
        """The present link."""
        return self._grants.link

    @property
    def waiting(self) -> bool:
        """Whether a link is needed and not there."""
        return self.link is None and self._grants.needed.is_set()

    @property
    def idle(self) -> bool:
        """Whether no channel is granted and wanted."""
        return not self._grants.routes

    @property
    def probe_name(self) -> bytes | None:
        """What the probe listens on, while something is wanted."""
        return self._grants.probe_name

    # What is heard

    async def _read(self, link: Link) -> None:
        grants, kind_of_message = self._grants, self._kind_of_message
        routes, regained = grants.routes, grants.regained
        batch: list[tuple[str, bytes]] = []
        while True:
            if self._gate is not None and (grants.settled or self._gate.is_set()):
                await self._wait_for_release(link)
            for reply in await link.read():
                if isinstance(reply, list) and reply and reply[0] == kind_of_message:
                    if regained and self._gate is None:
                        self._report_regained()
                    name = reply[1]
                    channel = routes.get(name)
                    if channel is not None:
                        batch.append((channel, reply[2]))
                    elif self._probe is not None and name == grants.probe_name:
                        self._probe.heard(reply[2])
                    continue
                if batch:
                    # A gap may follow, or someone waits for this answer: first what came before.
                    await self._deliver(link, batch)
                    batch = []
                grants.answered(reply)
            if self._gate is None:
                self._report_regained()
            if batch:
                await self._deliver(link, batch)
                batch = []

    async def _deliver(self, link: Link, batch: list[tuple[str, bytes]]) -> None:
        if self._gate is not None:
            self._held += batch
            if len(self._held) > HELD_MESSAGES:
                raise LinkLost("too many messages came while it took over")
            return
        await self._while_held(link, self._sink.deliver(batch))

    async def _while_held(self, link: Link, work: Awaitable[object]) -> None:
        """Do what keeps us from reading: the server is not to blame for that time."""
        link.held_since = started = time.monotonic()
        try:
            await work
        finally:
            link.held_since = None
            link.held_seconds += time.monotonic() - started

    async def _wait_for_release(self, link: Link) -> None:
        """Everything is granted: read no more before the other reader has ended."""
        if self._gate is None:
            return
        await self._while_held(link, self._gate.wait())
        self._gate = None
        self._report_regained()
        held, self._held = self._held, []
        if held:
            await self._deliver(link, held)

    def _report_regained(self) -> None:
        regained = self._grants.regained
        for reason, channels in regained.items():
            self._sink.lost(channels, reason)
        regained.clear()

    def ask(self, command: tuple[bytes, ...]) -> asyncio.Future[Any]:
        """See `Grants.ask`. Everything heard before the reply has been delivered by then."""
        return self._grants.ask(command)

    # Taking over

    async def until_settled(self) -> None:
        """Wait for the server's answers to all that was asked.

        Raises:
            LinkLost: the link was lost before `release`.
        """
        if self._gone is None:
            await self._grants.until_settled()
        if self._gone is not None:
            raise LinkLost(self._gone)

    async def until_heard(self, seconds: float) -> None:
        """Wait until everything that the server had sent before this call was delivered.

        Raises:
            LinkLost: there is no link, or it was lost, or it carries nothing for so long.
        """
        reply = self.ask((b"PING",))
        if (link := self.link) is not None:
            await expect(link, reply, seconds, "no answer to PING")
        reply.result()

    def mute(self) -> None:
        """Deliver nothing more; another reader has what comes from here on."""
        self._grants.forget()

    def lose(self, reason: str) -> None:
        """Report everything that the link carries as lost."""
        self._grants.owner.lost([channel for channel, _ in self.carried], reason)

    def reset(self, reason: str) -> None:
        """Drop the link, if there is one; what is wanted is asked for on the next, at once."""
        self._backoff.cut_short()
        link = self._first if self.link is None else self.link
        if link is not None:
            self._abort_reason = reason
            link.abort()

    def release(self, owner: Owner) -> None:
        """Deliver what was held, after the gaps of what was lost before this reader took over.

        Args:
            owner: takes the reports from now on.
        """
        self._grants.owner = owner
        for channel, _ in self.carried:
            reason = owner.granted(channel)
            if reason is not None:
                self._grants.regained.setdefault(reason, []).append(channel)
        if self._gate is not None:
            self._gate.set()

    # The life of links

    async def _run(self) -> None:
        while True:
            if self._first is None:
                await self._grants.needed.wait()
            try:
                link, self._first = self._first or await self._open_link(), None
            except ConnectError as exc:
                self.trouble = exc
                self._throttle.log(logging.WARNING, "connect", "cannot subscribe: %s", exc)
                self._grants.owner.unreachable([channel for channel, _ in self.wanted], exc)
            except Exception as exc:
                self.trouble = ConnectError(self._url, f"cannot connect: {exc!r}")
                self._supervisor.failed("connecting to subscribe", exc)
            else:
                await self._live(link)
                if self._gone is not None:
                    return  # It was to take over, and there is nothing more to do for it.
            await self._backoff.pause()

    async def _live(self, link: Link) -> None:
        self._abort_reason = ""
        self.trouble = None
        reason = "closed"
        surprised = False
        try:
            self._grants.begin(link)
            await first_of(self._read(link), self._watch(link))
        except LinkLost as exc:
            reason = self._abort_reason or str(exc)
            self._throttle.log(
                logging.WARNING, "lost", "%s: subscribing connection lost: %s", self._url, reason
            )
        except Exception as exc:
            # An error of one subscriber or one reply must not end delivery to all channels.
            reason, surprised = "internal error", True
            self._supervisor.failed("the reader", exc)
        finally:
            link.abort()
            self._held.clear()
            if self._gate is not None and not self._gate.is_set():
                self._gone = reason
            if self._grants.fruitful and not surprised:
                self._backoff.reset()
            self._grants.end(reason)

    async def _watch(self, link: Link) -> None:
        """Find out when the link is dead. Raises LinkLost."""
        if self._gate is not None:
            await self._gate.wait()  # Before that it is not read all the time.
        watching = [
            keepalive(link, lambda: self.ask((b"PING",)), self._url.options.dead_peer_seconds)
        ]
        if self._probe is not None:
            watching.append(self._probe.run(self, link))
        await first_of(*watching)

    async def aclose(self) -> None:
        """Close the link and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._first is not None:
            self._first.abort()
