"""One server's messages: the link that carries subscriptions there, for as long as any is wanted.

A supervisor task connects whenever something is wanted. Under it run the reading, the PING deadline
and the delivery probe; whichever finds the link dead ends it, and the supervisor connects again and
asks for everything again. A reader only reports; what a lost or refused channel means is decided by
its owner (`subscriptions`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from ..broker import Sink
from ..errors import ConnectError
from ..log import LogThrottle
from ..url import BrokerURL
from .link import Backoff, Link, LinkLost, ReplyError, first_of, keepalive, pack

__all__ = ["Owner", "Reader"]

logger = logging.getLogger("django_sockets")

SUBSCRIBE, UNSUBSCRIBE, PING = b"SUBSCRIBE", b"UNSUBSCRIBE", b"PING"
NAMES_PER_COMMAND = 1000
REFUSED_RETRY_SECONDS = 1.0
"""A subscription that was refused and is still wanted is asked for again this often."""


class Owner(Protocol):
    """Who decides what a reader's reports mean."""

    def granted(self, channel: str) -> str | None:
        """The server subscribed us. Returns why the subscription had been lost, if it had."""

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """Granted subscriptions are gone; the reader asks for them again."""

    def refused(self, channel: str, error: ReplyError) -> None:
        """The server does not let us subscribe; the reader asks again while it is wanted."""

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """No connection could be made for these wanted channels; the reader tries again."""


class _Grant:
    """One channel at this server: what is wanted, and what the present link was told and answered.

    Attributes:
        sent: the last command written on the link.
        unanswered: commands on the link without an answer.
    """

    __slots__ = ("channel", "name", "sent", "unanswered", "wanted")

    def __init__(self, channel: str, name: bytes) -> None:
        self.channel = channel
        self.name = name
        self.wanted = True
        self.sent: bytes | None = None
        self.unanswered = 0

    @property
    def active(self) -> bool:
        return self.wanted and self.sent == SUBSCRIBE and not self.unanswered


class _Command:
    """A command not answered yet: a push comes for each name, or one reply, or an error."""

    __slots__ = ("answered", "names", "pong", "verb")

    def __init__(
        self, verb: bytes, names: Sequence[bytes], pong: asyncio.Future[None] | None = None
    ) -> None:
        self.verb = verb
        self.names = names
        self.pong = pong
        self.answered = 0


class Reader:
    """The subscribing connection to one server.

    Args:
        open_link: connects; raises ConnectError.
        probe: runs beside the reading; raises LinkLost.
        probe_name: server-side name that the probe listens on; messages there go to `on_probe`.

    Attributes:
        probing: the probe's name is asked for, because something is wanted.
        can_probe: False once the server refused the probe's name.
        trouble: why there is no link at this moment, or None.
    """

    def __init__(
        self,
        url: BrokerURL,
        sink: Sink,
        owner: Owner,
        *,
        open_link: Callable[[], Awaitable[Link]],
        probe: Callable[[Link], Coroutine[Any, Any, None]],
        probe_name: bytes,
        on_probe: Callable[[bytes], None],
    ) -> None:
        self._url = url
        self._sink = sink
        self._owner = owner
        self._open_link = open_link
        self._probe = probe
        self._probe_name = probe_name
        self._on_probe = on_probe
        self.probing = False
        self.can_probe = True
        self.trouble: ConnectError | None = None
        self._grants: dict[bytes, _Grant] = {}
        self._routes: dict[bytes, str] = {}
        self._dirty: dict[bytes, None] = {}
        self._regained: dict[str, list[str]] = {}
        self._commands: deque[_Command] = deque()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._flush_due = False
        self._needed = asyncio.Event()
        self._backoff = Backoff()
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    # What is wanted

    def want(self, channel: str, name: bytes) -> bool:
        """Ask for a channel; True if the server has granted it already."""
        grant = self._grants.get(name)
        if grant is None:
            grant = self._grants[name] = _Grant(channel, name)
        grant.wanted = True
        if grant.active:
            self._routes[name] = channel
            return True
        self._dirty[name] = None
        self._needed.set()
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name="django_sockets subscriber")
        self._flush_soon()
        return False

    def unwant(self, name: bytes) -> None:
        """Ask for a channel no more; nothing is delivered on it from now on."""
        grant = self._grants.get(name)
        if grant is None:
            return
        grant.wanted = False
        self._routes.pop(name, None)
        if grant.sent is None and not grant.unanswered:
            self._drop(name)
        else:
            self._dirty[name] = None
            self._flush_soon()

    def _drop(self, name: bytes) -> None:
        self._dirty.pop(name, None)
        del self._grants[name]
        if not self._grants and self._link is None:
            self._needed.clear()  # Nobody waits for a link any more.

    # What is sent

    def _flush_soon(self) -> None:
        if self._link is not None and not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Write what differs between wanted and sent, for many callers at once."""
        self._flush_due = False
        if self._link is None:
            return
        commands: dict[bytes, list[bytes]] = {SUBSCRIBE: [], UNSUBSCRIBE: []}
        for name in self._dirty:
            grant = self._grants[name]
            verb = SUBSCRIBE if grant.wanted else UNSUBSCRIBE
            if grant.sent == verb or (grant.sent is None and verb == UNSUBSCRIBE):
                continue
            grant.sent = verb
            grant.unanswered += 1
            commands[verb].append(name)
        self._dirty.clear()
        wanted = any(grant.wanted for grant in self._grants.values())
        if wanted != self.probing:
            self.probing = wanted
            commands[SUBSCRIBE if wanted else UNSUBSCRIBE].append(self._probe_name)
        for verb, names in commands.items():
            for start in range(0, len(names), NAMES_PER_COMMAND):
                self._send(verb, names[start : start + NAMES_PER_COMMAND])

    def _send(
        self, verb: bytes, names: Sequence[bytes], pong: asyncio.Future[None] | None = None
    ) -> None:
        if self._link is None:
            return
        self._commands.append(_Command(verb, names, pong))
        # A write that fails needs no care: the reading of the same link is about to find out.
        with contextlib.suppress(LinkLost):
            self._link.write(pack((verb, *names)))

    def _ping(self) -> asyncio.Future[None]:
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send(PING, (), pong)
        return pong

    # What is heard

    async def _read(self, link: Link) -> None:
        routes, regained = self._routes, self._regained
        batch: list[tuple[str, bytes]] = []
        while True:
            for reply in await link.read():
                if isinstance(reply, list) and reply:
                    kind = reply[0]
                    if kind == b"message":
                        if regained:
                            self._report_regained()
                        name = reply[1]
                        channel = routes.get(name)
                        if channel is not None:
                            batch.append((channel, reply[2]))
                        elif name == self._probe_name:
                            self._on_probe(reply[2])
                        continue
                    if batch and kind == b"subscribe":
                        # A gap may follow: what was read before it goes first.
                        await self._deliver(link, batch)
                        batch = []
                    self._answered(kind, reply)
                elif isinstance(reply, ReplyError):
                    self._refused(reply)
                else:
                    self._ponged()
            self._report_regained()
            if batch:
                await self._deliver(link, batch)
                batch = []

    async def _deliver(self, link: Link, batch: list[tuple[str, bytes]]) -> None:
        started = time.monotonic()
        await self._sink.deliver(batch)
        link.held_seconds += time.monotonic() - started

    def _report_regained(self) -> None:
        for reason, channels in self._regained.items():
            self._sink.lost(channels, reason)
        self._regained.clear()

    def _answered(self, kind: bytes, reply: Sequence[Any]) -> None:
        """An acknowledgement, or an unsubscription that the server made by itself."""
        if kind == b"pong":
            self._ponged()
            return
        if kind not in (b"subscribe", b"unsubscribe"):
            return
        name = reply[1]
        grant = self._grants.get(name)
        command = self._commands[0] if self._commands else None
        if (
            command is not None
            and command.verb.lower() == kind
            and command.names[command.answered] == name
        ):
            command.answered += 1
            if command.answered == len(command.names):
                self._commands.popleft()
            if grant is not None:
                grant.unanswered -= 1
                self._settle(grant)
        elif kind == b"unsubscribe" and grant is not None and grant.active:
            self._taken_away(grant)

    def _settle(self, grant: _Grant) -> None:
        """Act on the last answer that a channel was waiting for."""
        if grant.active:
            self._routes[grant.name] = grant.channel
            self._backoff.reset()
            reason = self._owner.granted(grant.channel)
            if reason is not None:
                self._regained.setdefault(reason, []).append(grant.channel)
        elif not grant.unanswered and not grant.wanted and grant.sent != SUBSCRIBE:
            self._drop(grant.name)

    def _taken_away(self, grant: _Grant) -> None:
        self._routes.pop(grant.name, None)
        grant.sent = None
        self._owner.lost([grant.channel], "unsubscribed by the server")
        self._dirty[grant.name] = None
        self._flush_soon()

    def _ponged(self) -> None:
        if self._commands and self._commands[0].pong is not None:
            pong = self._commands.popleft().pong
            if pong is not None and not pong.done():
                pong.set_result(None)

    # What is refused

    def _refused(self, error: ReplyError) -> None:
        if not self._commands:
            raise LinkLost(f"the server says: {error}")
        command = self._commands[0]
        if command.pong is not None:
            self._ponged()  # An answer all the same.
            return
        self._commands.popleft()
        if len(command.names) > 1:
            for name in command.names:  # Only some may be forbidden: find out which.
                grant = self._grants.get(name)
                if grant is None or grant.sent == command.verb:
                    self._send(command.verb, [name])
                else:  # The opposite was sent meanwhile, and is the last word.
                    grant.unanswered -= 1
                    self._settle(grant)
        elif command.names[0] == self._probe_name:
            self._no_probe(error)
        else:
            self._refused_one(self._grants[command.names[0]], error)

    def _refused_one(self, grant: _Grant, error: ReplyError) -> None:
        grant.unanswered -= 1
        grant.sent = None
        self._owner.refused(grant.channel, error)
        if grant.wanted:
            loop = asyncio.get_running_loop()
            loop.call_later(REFUSED_RETRY_SECONDS, self._ask_again, grant.name)
        elif not grant.unanswered and grant.name in self._grants:
            self._drop(grant.name)

    def _ask_again(self, name: bytes) -> None:
        if name in self._grants:
            self._dirty[name] = None
            self._flush_soon()

    def _no_probe(self, error: ReplyError) -> None:
        if self.can_probe:
            self.can_probe = False
            logger.warning(
                "%s: the server refuses the delivery probe's channel (%s); allow the pattern %r in "
                "the user's ACL, or a server that stops delivering goes unnoticed",
                self._url,
                error,
                f"{self._url.options.prefix}:*",
            )

    # The life of links

    async def _run(self) -> None:
        while True:
            await self._needed.wait()
            try:
                link = await self._open_link()
            except ConnectError as exc:
                self.trouble = exc
                self._throttle.log(logging.WARNING, "connect", "cannot subscribe: %s", exc)
                wanted = [grant.channel for grant in self._grants.values() if grant.wanted]
                self._owner.unreachable(wanted, exc)
            else:
                await self._live(link)
            await self._backoff.pause()

    async def _live(self, link: Link) -> None:
        self._link = link
        self.trouble = None
        self._dirty.update(dict.fromkeys(self._grants))
        reason = "closed"
        try:
            self._flush()
            await first_of(
                self._read(link),
                keepalive(link, self._ping, self._url.options.dead_peer_seconds),
                self._probe(link),
            )
        except LinkLost as exc:
            reason = str(exc)
            self._throttle.log(
                logging.WARNING, "lost", "%s: subscribing connection lost: %s", self._url, reason
            )
        except Exception:
            # Whatever a subscriber did, the others must go on hearing.
            reason = "internal error"
            logger.exception("%s: the reader failed; connecting again", self._url)
        finally:
            link.abort()
            self._unlink(reason)

    def _unlink(self, reason: str) -> None:
        """The link is gone: tell what went with it, and forget what nobody wants."""
        self._link = None
        self.probing = False
        self._commands.clear()
        self._routes.clear()
        active = [grant.channel for grant in self._grants.values() if grant.active]
        for earlier, channels in self._regained.items():
            self._owner.lost(channels, earlier)
        self._regained.clear()
        self._owner.lost(active, reason)
        for name, grant in list(self._grants.items()):
            grant.sent, grant.unanswered = None, 0
            if not grant.wanted:
                self._drop(name)
        if not self._grants:
            self._needed.clear()

    async def aclose(self) -> None:
        """Close the link and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
