"""One server's messages: the link that carries subscriptions there, for as long as any is wanted.

A supervisor task connects whenever something is wanted. Under it run the reading, the PING deadline
and the delivery probe; whichever finds the link dead ends it, and the supervisor connects again and
asks for everything again. A reader only reports; what a lost, displaced or refused channel means is
decided by its owner (`subscriptions`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from ..broker import Sink
from ..errors import ConnectError
from ..log import LogThrottle
from ..url import BrokerURL
from .deadlines import Backoff, expect, first_of, keepalive
from .link import Link, LinkLost, Opener, ReplyError, is_push, pack
from .names import Verbs, slot_of

__all__ = ["Owner", "Probe", "Reader"]

logger = logging.getLogger("django_sockets")

NAMES_PER_COMMAND = 1000
REFUSED_RETRY_SECONDS = 1.0
"""A subscription that was refused and is still wanted is asked for again this often."""
HELD_MESSAGES = 65_536
"""Messages that may wait while a link takes over from another; more end the new link."""
ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN")
"""How the errors begin that say: not here, or not now."""


class Owner(Protocol):
    """Who decides what a reader's reports mean."""

    def granted(self, channel: str) -> str | None:
        """The server subscribed us. Returns why the subscription had been lost, if it had."""

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """Granted subscriptions are gone; the link's are asked for again on the next link."""

    def displaced(self, channels: Sequence[str], error: ReplyError | None) -> None:
        """The server does not serve these wanted channels now, or took them away (no error).

        The reader asks for them again when it is told to (`ask_again`), and on its next link.
        """

    def refused(self, channel: str, error: ReplyError) -> None:
        """The server does not let us subscribe; the reader asks again while it is wanted."""

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """No connection could be made for these wanted channels; the reader tries again."""


class Probe(Protocol):
    """Proves again and again that what is published arrives on a reader's link."""

    def name(self, like: bytes) -> bytes:
        """The name to listen on, on the server that serves the name `like`."""

    async def run(self, reader: Reader, link: Link) -> None:
        """Probe until cancelled. Raises LinkLost."""

    def heard(self, payload: bytes) -> None:
        """A message arrived on the probe's name."""


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


class _Command:
    """What was written and is not answered yet.

    A subscribing command is answered by one push for each name, or by one error. Everything else
    ends with a command that has a reply of its own, in `reply`: what comes before that is an answer
    to the unsubscribing commands in front of it, in whatever way the server puts it.
    """

    __slots__ = ("answered", "names", "reply")

    def __init__(self, names: Sequence[bytes], reply: asyncio.Future[Any] | None = None) -> None:
        self.names = names
        self.reply = reply
        self.answered = 0


class Reader:
    """The subscribing connection to one server.

    Args:
        open_link: connects; raises ConnectError.
        link: a first link, for a reader that takes over from another: what is heard there waits
            until `release`, and if it is lost before, `until_settled` says so.

    Attributes:
        probe_name: what the probe listens on, while something is wanted.
        can_probe: False once the server refused the probe's name.
        trouble: why there is no link at this moment, or None.
    """

    def __init__(
        self,
        url: BrokerURL,
        sink: Sink,
        owner: Owner,
        *,
        open_link: Opener,
        probe: Probe,
        verbs: Verbs,
        link: Link | None = None,
    ) -> None:
        self._url = url
        self._sink = sink
        self._owner = owner
        self._open_link = open_link
        self._probe = probe
        self._verbs = verbs
        self.probe_name: bytes | None = None
        self.can_probe = True
        self.trouble: ConnectError | None = None
        self._grants: dict[bytes, _Grant] = {}
        self._routes: dict[bytes, str] = {}
        self._dirty: dict[bytes, None] = {}
        self._regained: dict[str, list[str]] = {}
        self._commands: deque[_Command] = deque()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._abort_reason = ""
        self._flush_due = False
        self._needed = asyncio.Event()
        self._settled = asyncio.Event()
        self._first = link
        self._gate: asyncio.Event | None = None if link is None else asyncio.Event()
        self._gone: str | None = None
        self._held: list[tuple[str, bytes]] = []
        self._backoff = Backoff()
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)

    # What is wanted

    def want(self, channel: str, name: bytes) -> bool:
        """Ask for a channel; True if the server has granted it already."""
        grant = self._grants.get(name)
        if grant is None:
            grant = self._grants[name] = _Grant(channel, name)
        grant.wanted = True
        if self._is_active(grant):
            self._routes[name] = channel
            return True
        self._settled.clear()
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
        if self._held:
            self._held = [item for item in self._held if item[0] != grant.channel]
        if grant.sent is None and not grant.unanswered:
            self._drop(grant)
        else:
            self._dirty[name] = None
            self._flush_soon()

    def ask_again(self, name: bytes) -> None:
        """Ask once more for a displaced or refused channel, if it is still wanted."""
        if name in self._grants:
            self._dirty[name] = None
            self._flush_soon()

    def grants(self, name: bytes) -> bool:
        """Whether the server has granted this name, and it is wanted."""
        grant = self._grants.get(name)
        return grant is not None and self._is_active(grant)

    @property
    def waiting(self) -> bool:
        """Whether a link is needed and not there."""
        return self._link is None and self._needed.is_set()

    def _is_active(self, grant: _Grant) -> bool:
        return grant.wanted and grant.sent == self._verbs.subscribe and not grant.unanswered

    def _drop(self, grant: _Grant) -> None:
        self._dirty.pop(grant.name, None)
        if self._grants.get(grant.name) is grant:
            del self._grants[grant.name]
        if not self._grants and self._link is None:
            self._needed.clear()  # Nobody waits for a link any more.
        self._check_settled()

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
        verbs = self._verbs
        asked: list[bytes] = []
        ended: list[bytes] = []
        for name in self._dirty:
            grant = self._grants[name]
            verb = verbs.subscribe if grant.wanted else verbs.unsubscribe
            if grant.sent == verb or (grant.sent is None and not grant.wanted):
                continue
            grant.sent = verb
            grant.unanswered += 1
            (asked if grant.wanted else ended).append(name)
        self._dirty.clear()
        self._choose_probe(asked, ended)
        self._subscribe(asked)
        if ended:
            data = [pack((verbs.unsubscribe, *names)) for names in self._grouped(ended)]
            self._ask((b"PING",), after=data, names=ended)
        self._check_settled()

    def _choose_probe(self, asked: list[bytes], ended: list[bytes]) -> None:
        """Listen to the probe while anything else is subscribed here."""
        carried = (
            grant.name
            for grant in self._grants.values()
            if grant.wanted and grant.sent == self._verbs.subscribe
        )
        like = next(carried, None)
        if like is not None and self.probe_name is None and self.can_probe:
            self.probe_name = self._probe.name(like)
            asked.append(self.probe_name)
        elif like is None and self.probe_name is not None:
            ended.append(self.probe_name)
            self.probe_name = None

    def _grouped(self, names: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Split names into what one command may carry."""
        groups: dict[int, list[bytes]] = {}
        for name in names:
            groups.setdefault(slot_of(name) if self._verbs.by_slot else 0, []).append(name)
        for group in groups.values():
            for start in range(0, len(group), NAMES_PER_COMMAND):
                yield group[start : start + NAMES_PER_COMMAND]

    def _subscribe(self, names: Iterable[bytes]) -> None:
        data = []
        for group in self._grouped(names):
            self._commands.append(_Command(group))
            data.append(pack((self._verbs.subscribe, *group)))
        self._write(data)

    def _ask(
        self,
        command: tuple[bytes, ...],
        after: Sequence[bytes] = (),
        names: Sequence[bytes] = (),
    ) -> asyncio.Future[Any]:
        """Write a command that has a reply of its own, after others that end `names`."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._commands.append(_Command(names, reply))
        self._write([*after, pack(command)])
        return reply

    def ask(self, command: tuple[bytes, ...]) -> asyncio.Future[Any]:
        """Ask on the link itself, behind all that was sent before; the reply, errors included.

        When it comes, everything that the server had sent before it has been delivered. A server
        that speaks RESP2 answers nothing but PING here.

        Raises:
            LinkLost: there is no link; later, through the future: the link was lost.
        """
        if self._link is None:
            raise LinkLost("no link")
        return self._ask(command)

    def _write(self, data: Sequence[bytes]) -> None:
        if self._link is not None and data:
            # A write that fails needs no care: the reading of the link is about to find out.
            with contextlib.suppress(LinkLost):
                self._link.write(b"".join(data))

    # What is heard

    async def _read(self, link: Link) -> None:
        routes, regained, kind_of_message = self._routes, self._regained, self._verbs.message
        batch: list[tuple[str, bytes]] = []
        while True:
            if self._gate is not None and (self._settled.is_set() or self._gate.is_set()):
                await self._wait_for_release(link)
            for reply in await link.read():
                if isinstance(reply, list) and reply and reply[0] == kind_of_message:
                    if regained and self._gate is None:
                        self._report_regained()
                    name = reply[1]
                    channel = routes.get(name)
                    if channel is not None:
                        batch.append((channel, reply[2]))
                    elif name == self.probe_name:
                        self._probe.heard(reply[2])
                    continue
                if batch:
                    # A gap may follow, or someone waits for this answer: first what came before.
                    await self._deliver(link, batch)
                    batch = []
                self._answered(reply)
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
        started = time.monotonic()
        await self._sink.deliver(batch)
        link.held_seconds += time.monotonic() - started

    async def _wait_for_release(self, link: Link) -> None:
        """Everything is granted: read no more before the other reader has ended."""
        if self._gate is None:
            return
        started = time.monotonic()
        await self._gate.wait()
        link.held_seconds += time.monotonic() - started
        self._gate = None
        self._report_regained()
        held, self._held = self._held, []
        if held:
            await self._deliver(link, held)

    def _report_regained(self) -> None:
        for reason, channels in self._regained.items():
            self._sink.lost(channels, reason)
        self._regained.clear()

    def _answered(self, reply: Any) -> None:
        """An acknowledgement, a reply, or something that the server did by itself."""
        kind = reply[0] if isinstance(reply, list) and reply else None
        if isinstance(reply, ReplyError):
            self._refused(reply)
        elif kind == self._verbs.subscribed:
            self._subscribed(reply[1])
        elif kind == self._verbs.unsubscribed:
            self._unsubscribed(reply[1])
        elif kind == b"pong" or not is_push(reply):
            self._replied(reply)
        self._check_settled()

    def _check_settled(self) -> None:
        if not self._commands and not self._dirty:
            self._settled.set()

    def _subscribed(self, name: bytes) -> None:
        command = self._commands[0] if self._commands else None
        if command is None or command.reply is not None or command.names[command.answered] != name:
            return
        command.answered += 1
        if command.answered == len(command.names):
            self._commands.popleft()
        self._settle(name)

    def _unsubscribed(self, name: bytes) -> None:
        """What we ended is settled by the reply behind it; what we did not, was taken away."""
        grant = self._grants.get(name)
        if grant is not None and self._is_active(grant):
            self._routes.pop(name, None)
            grant.sent = None
            self._owner.lost([grant.channel], "unsubscribed by the server")
            self._owner.displaced([grant.channel], None)
        elif name == self.probe_name:
            self._displace_probe()

    def _replied(self, reply: Any) -> None:
        if not self._commands or self._commands[0].reply is None:
            return
        command = self._commands.popleft()
        for name in command.names:
            self._settle(name)
        if command.reply is not None and not command.reply.done():
            command.reply.set_result(reply)

    def _settle(self, name: bytes) -> None:
        """Act on the last answer that a channel was waiting for."""
        grant = self._grants.get(name)
        if grant is None:
            return
        grant.unanswered -= 1
        if self._is_active(grant):
            self._routes[name] = grant.channel
            self._backoff.reset()
            reason = self._owner.granted(grant.channel)
            if reason is not None:
                self._regained.setdefault(reason, []).append(grant.channel)
        elif not grant.unanswered and not grant.wanted and grant.sent != self._verbs.subscribe:
            self._drop(grant)

    # What is refused

    def _refused(self, error: ReplyError) -> None:
        if not self._commands:
            raise LinkLost(f"the server says: {error}")
        command = self._commands[0]
        if command.reply is not None:
            if not command.names:
                self._replied(error)
            return  # We are rid of a name that this server does not even know: so be it.
        self._commands.popleft()
        if str(error).startswith(ELSEWHERE):
            self._elsewhere(command.names, error)
        elif len(command.names) > 1:
            for name in command.names:  # Only some may be forbidden: find out which.
                grant = self._grants.get(name)
                if grant is None or grant.sent == self._verbs.subscribe:
                    self._subscribe([name])
                else:  # The opposite was sent meanwhile, and is the last word.
                    self._settle(name)
        elif command.names[0] == self.probe_name:
            self._no_probe(error)
        elif (grant := self._grants.get(command.names[0])) is not None:
            self._refused_one(grant, error)

    def _elsewhere(self, names: Sequence[bytes], error: ReplyError) -> None:
        channels = []
        for name in names:
            grant = self._grants.get(name)
            if grant is None:
                if name == self.probe_name:
                    self._displace_probe()
                continue
            grant.unanswered -= 1
            if grant.wanted and not grant.unanswered:
                grant.sent = None
                channels.append(grant.channel)
            elif not grant.wanted and not grant.unanswered:
                self._drop(grant)
        if channels:
            self._owner.displaced(channels, error)

    def _displace_probe(self) -> None:
        """The slot of the probe's name has moved: choose another name."""
        self.probe_name = None
        self._flush_soon()

    def _refused_one(self, grant: _Grant, error: ReplyError) -> None:
        grant.unanswered -= 1
        grant.sent = None
        self._owner.refused(grant.channel, error)
        if grant.wanted:
            loop = asyncio.get_running_loop()
            loop.call_later(REFUSED_RETRY_SECONDS, self.ask_again, grant.name)
        elif not grant.unanswered:
            self._drop(grant)

    def _no_probe(self, error: ReplyError) -> None:
        self.probe_name = None
        if self.can_probe:
            self.can_probe = False
            logger.warning(
                "%s: the server refuses the delivery probe's channel (%s); allow the pattern %r in "
                "the user's ACL, or a server that stops delivering goes unnoticed",
                self._url,
                error,
                f"{self._url.options.prefix}:*",
            )

    # Taking over

    async def until_settled(self) -> None:
        """Wait for the server's answers to all that was asked.

        Raises:
            LinkLost: the link was lost before `release`.
        """
        await self._settled.wait()
        if self._gone is not None:
            raise LinkLost(self._gone)

    async def until_heard(self, seconds: float) -> None:
        """Wait until everything that the server had sent before this call was delivered.

        Raises:
            LinkLost: there is no link, or it was lost, or it carries nothing for so long.
        """
        reply = self.ask((b"PING",))
        if (link := self._link) is not None:
            await expect(link, reply, seconds, "no answer to PING")
        reply.result()

    @property
    def link(self) -> Link | None:
        """The present link."""
        return self._link

    @property
    def wanted(self) -> list[tuple[str, bytes]]:
        """The channels and names that are wanted."""
        return [(grant.channel, name) for name, grant in self._grants.items() if grant.wanted]

    @property
    def carried(self) -> list[tuple[str, bytes]]:
        """The channels and names that are wanted and granted."""
        return [(g.channel, name) for name, g in self._grants.items() if self._is_active(g)]

    def mute(self) -> None:
        """Deliver nothing more; another reader has what comes from here on."""
        self._routes.clear()
        self._grants.clear()
        self._dirty.clear()

    def lose(self, reason: str) -> None:
        """Report everything that the link carries as lost."""
        self._owner.lost([channel for channel, _ in self.carried], reason)

    def reset(self, reason: str) -> None:
        """Drop the link, if there is one; what is wanted is asked for on the next."""
        link = self._first if self._link is None else self._link
        if link is not None:
            self._abort_reason = reason
            link.abort()

    def release(self, owner: Owner) -> None:
        """Deliver what was held, after the gaps of what was lost before this reader took over.

        Args:
            owner: takes the reports from now on.
        """
        self._owner = owner
        for channel, _ in self.carried:
            reason = owner.granted(channel)
            if reason is not None:
                self._regained.setdefault(reason, []).append(channel)
        if self._gate is not None:
            self._gate.set()

    # The life of links

    async def _run(self) -> None:
        while True:
            if self._first is None:
                await self._needed.wait()
            try:
                link, self._first = self._first or await self._open_link(), None
            except ConnectError as exc:
                self.trouble = exc
                self._throttle.log(logging.WARNING, "connect", "cannot subscribe: %s", exc)
                wanted = [grant.channel for grant in self._grants.values() if grant.wanted]
                self._owner.unreachable(wanted, exc)
            else:
                await self._live(link)
                if self._gone is not None:
                    return  # It was to take over, and there is nothing more to do for it.
            await self._backoff.pause()

    async def _live(self, link: Link) -> None:
        self._link = link
        self._abort_reason = ""
        self.trouble = None
        self._dirty.update(dict.fromkeys(self._grants))
        reason = "closed"
        try:
            self._flush()
            await first_of(self._read(link), self._watch(link))
        except LinkLost as exc:
            reason = self._abort_reason or str(exc)
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

    async def _watch(self, link: Link) -> None:
        """Find out when the link is dead. Raises LinkLost."""
        if self._gate is not None:
            await self._gate.wait()  # Before that it is not read all the time.
        await first_of(
            keepalive(link, lambda: self._ask((b"PING",)), self._url.options.dead_peer_seconds),
            self._probe.run(self, link),
        )

    def _unlink(self, reason: str) -> None:
        """The link is gone: tell what went with it, and forget what nobody wants."""
        self._link = None
        self.probe_name = None
        self._settled.clear()
        if self._gate is not None and not self._gate.is_set():
            self._gone = reason
        for command in self._commands:
            if command.reply is not None and not command.reply.done():
                command.reply.set_exception(LinkLost(reason))
                command.reply.exception()  # Whoever asked may be gone: no complaint about that.
        self._commands.clear()
        self._routes.clear()
        active = [channel for channel, _ in self.carried]
        self._held.clear()
        for earlier, channels in self._regained.items():
            self._owner.lost(channels, earlier)
        self._regained.clear()
        for grant in list(self._grants.values()):
            grant.sent, grant.unanswered = None, 0
            if not grant.wanted:
                self._drop(grant)
        self._owner.lost(active, reason)
        if not self._grants:
            self._needed.clear()
        if self._gone is not None:
            self._settled.set()  # Whoever waits for answers has to know.

    async def aclose(self) -> None:
        """Close the link and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._first is not None:
            self._first.abort()
