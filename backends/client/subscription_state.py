"""What one server was asked for, and what it has granted: the conversation of a subscribing link.

Subscribing commands are answered name by name, or refused; a server may also take a name away by
itself. `Grants` keeps what is wanted apart from what the present link was told and answered, writes
the difference, and reports what comes of it to its owner. It reads nothing: `reader` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from ...errors import ConnectError
from ...loops import OfOneLoop
from ...url import BrokerURL
from .commands import Verbs, slot_of
from .connection import Link, LinkLost, ReplyError, is_push, pack
from .inquiry import Pause
from .supervision import Supervisor

__all__ = ["ELSEWHERE", "Grants", "Owner"]

logger = logging.getLogger("django_sockets")

NAMES_PER_COMMAND = 1000
QUIET_TURNS, GATHERING_SECONDS = 3, 0.004
"""Commands are written when nobody has had another one for so many turns of the event loop, or
after that time: at once in an idle process, and in one packet for many connections in a storm.
"""
REFUSED_RETRY_SECONDS = 1.0
"""A subscription that was refused and is still wanted is asked for again this often."""
PROBE_RETRY_SECONDS = 0.1
"""Pause before the probe's channel is asked for again, after an error of `ELSEWHERE`."""
ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY")
"""How the errors begin that say: not here, or not now."""
REDIRECTIONS = ("MOVED", "ASK", "TRYAGAIN", "CROSSSLOT")


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


class _Grant(msgspec.Struct, gc=False, eq=False):
    """One channel at this server: what is wanted, and what the present link was told and answered.

    Attributes:
        sent: the last command written on the link.
        unanswered: commands on the link without an answer.
    """

    channel: str
    name: bytes
    wanted: bool = True
    sent: bytes | None = None
    unanswered: int = 0


class _Command:
    """What was written and is not answered yet.

    A subscribing command is answered by one push for each name, or by one error. Everything else
    ends with a command that has a reply of its own, in `reply`: what comes before that is an answer
    to the unsubscribing commands in front of it. Each of these, too, is answered by one push for
    each name, or by one error.

    Attributes:
        answered: how many of the names have been answered.
        ends: place in `names` behind the last name of each unsubscribing command.
    """

    __slots__ = ("answered", "ends", "names", "reply")

    def __init__(
        self,
        names: Sequence[bytes],
        reply: asyncio.Future[Any] | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        self.names = names
        self.reply = reply
        self.ends = ends
        self.answered = 0

    def take_end(self, name: bytes) -> None:
        """Note that the server has ended a name; it may do so by itself, too."""
        if self.answered < len(self.names) and self.names[self.answered] == name:
            self.answered += 1

    def take_error(self, error: ReplyError) -> bool:
        """Whether an error is the reply, rather than an answer to an unsubscribing command."""
        for end in self.ends:
            if end > self.answered:
                self.answered = end
                return False
        # The server may have ended a name by itself and then refused to be asked for that. A PING
        # names no channel, so it is never redirected.
        return not (self.ends and str(error).startswith(REDIRECTIONS))


class Grants(OfOneLoop):
    """The names of one server, on its present link and on those to come.

    Args:
        owner: decides what the reports mean.
        probe_like: the name for the delivery probe, on the server that serves a given name; None
            for no probe.

    Attributes:
        owner: may be replaced.
        link: the present link.
        routes: name -> channel of what is granted and wanted: whose messages are to be delivered.
        regained: reason -> channels that were lost and are granted again; to be told before their
            next message.
        probe_name: what the probe listens on, while something is wanted.
        needed: set while a link is wanted or there.
        fruitful: the present link, or else the last one, has been granted something.
    """

    def __init__(
        self,
        url: BrokerURL,
        owner: Owner,
        verbs: Verbs,
        *,
        probe_like: Callable[[bytes], bytes] | None,
    ) -> None:
        self._url = url
        self.owner = owner
        self._verbs = verbs
        self._probe_like = probe_like
        self._probe_pause = Pause()
        self._probe_warned = False
        self._supervisor = Supervisor(url)
        self.link: Link | None = None
        self.routes: dict[bytes, str] = {}
        self.regained: dict[str, list[str]] = {}
        self.probe_name: bytes | None = None
        self.needed = asyncio.Event()
        self.fruitful = False
        self._settling: asyncio.Future[None] | None = None
        self._grants: dict[bytes, _Grant] = {}
        self._dirty: dict[bytes, None] = {}
        self._commands: deque[_Command] = deque()
        self._flush_due = False

    # What is wanted

    def want(self, channel: str, name: bytes) -> bool:
        """Ask for a channel; True if the server has granted it already."""
        grant = self._grants.get(name)
        if grant is None:
            self._grants[name] = _Grant(channel, name)
        else:
            grant.wanted = True
            if self._is_active(grant):
                self.routes[name] = channel
                return True
        self._dirty[name] = None
        if self.link is None:
            self.needed.set()
        self._flush_soon()
        return False

    def unwant(self, name: bytes) -> str | None:
        """Ask for a channel no more; it has no route from now on. Returns the channel."""
        grant = self._grants.get(name)
        if grant is None:
            return None
        grant.wanted = False
        self.routes.pop(name, None)
        if grant.sent is None and not grant.unanswered:
            self._drop(grant)
        else:
            self._dirty[name] = None
            self._flush_soon()
        return grant.channel

    def ask_again(self, name: bytes) -> None:
        """Ask once more for a displaced or refused channel, if it is still wanted."""
        if name in self._grants:
            self._dirty[name] = None
            self._flush_soon()

    def has(self, name: bytes) -> bool:
        """Whether the server has granted this name, and it is wanted."""
        grant = self._grants.get(name)
        return grant is not None and self._is_active(grant)

    @property
    def wanted(self) -> list[tuple[str, bytes]]:
        """The channels and names that are wanted."""
        return [(grant.channel, name) for name, grant in self._grants.items() if grant.wanted]

    @property
    def carried(self) -> list[tuple[str, bytes]]:
        """The channels and names that are wanted and granted."""
        return [(g.channel, name) for name, g in self._grants.items() if self._is_active(g)]

    def forget(self) -> None:
        """Want nothing, and tell nobody."""
        self.routes.clear()
        self._grants.clear()
        self._dirty.clear()

    def _is_active(self, grant: _Grant) -> bool:
        return grant.wanted and grant.sent == self._verbs.subscribe and not grant.unanswered

    def _drop(self, grant: _Grant) -> None:
        self._dirty.pop(grant.name, None)
        if self._grants.get(grant.name) is grant:
            del self._grants[grant.name]
        if not self._grants and self.link is None:
            self.needed.clear()  # Nobody waits for a link any more.

    # The link

    def begin(self, link: Link) -> None:
        """There is a link: ask for everything."""
        self.link = link
        self.needed.set()  # Whoever wanted it may be gone, and others come.
        self.fruitful = False
        self._dirty.update(dict.fromkeys(self._grants))
        self._flush()

    def end(self, reason: str) -> None:
        """The link is gone: tell what went with it, and forget what nobody wants."""
        self.link = None
        self.probe_name = None
        for command in self._commands:
            if command.reply is not None and not command.reply.done():
                command.reply.set_exception(LinkLost(reason))
                command.reply.exception()  # Whoever asked may be gone: no complaint about that.
        self._commands.clear()
        self.routes.clear()
        active = [channel for channel, _ in self.carried]
        regained = dict(self.regained)
        self.regained.clear()
        for grant in list(self._grants.values()):
            grant.sent, grant.unanswered = None, 0
            if not grant.wanted:
                self._drop(grant)
        if not self._grants:
            self.needed.clear()
        self._end_wait()
        # Last, because the owner's code may raise.
        for earlier, channels in regained.items():
            self.owner.lost(channels, earlier)
        self.owner.lost(active, reason)

    @property
    def settled(self) -> bool:
        """Whether the server has answered all that was asked."""
        return self.link is not None and not self._commands and not self._dirty

    async def until_settled(self) -> None:
        """Wait until it has, or the link is lost. One caller may wait."""
        if not self.settled:
            self._settling = self._loop.create_future()
            await self._settling

    def _check_settled(self) -> None:
        if self._settling is not None and self.settled:
            self._end_wait()

    def _end_wait(self) -> None:
        if self._settling is not None and not self._settling.done():
            self._settling.set_result(None)
        self._settling = None

    # What is sent

    def _flush_soon(self) -> None:
        if self.link is not None and not self._flush_due:
            self._flush_due = True
            self._gather(0, QUIET_TURNS, self._loop.time() + GATHERING_SECONDS)

    def _gather(self, before: int, turns: int, until: float) -> None:
        gathered = len(self._dirty)
        turns = turns - 1 if gathered == before else QUIET_TURNS
        if turns and self._loop.time() < until:
            self._loop.call_soon(self._gather, gathered, turns, until)
            return
        try:
            self._flush()
        except Exception as exc:
            # It is unknown what was written, so everything is asked for on a new link.
            self._supervisor.failed("asking for channels", exc)
            self.fruitful = False
            if self.link is not None:
                self.link.abort()

    def _flush(self) -> None:
        """Write what differs between wanted and sent, for many callers at once."""
        self._flush_due = False
        if self.link is None:
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
            self._ask((b"PING",), after=[*self._grouped(ended)])
        self._check_settled()

    def _choose_probe(self, asked: list[bytes], ended: list[bytes]) -> None:
        """Listen to the probe while anything else is subscribed here."""
        carried = (
            grant.name
            for grant in self._grants.values()
            if grant.wanted and grant.sent == self._verbs.subscribe
        )
        like = next(carried, None)
        if like is not None and self.probe_name is None and self._probe_like is not None:
            if self._probe_pause.over:
                self.probe_name = self._probe_like(like)
                asked.append(self.probe_name)
        elif like is None and self.probe_name is not None:
            ended.append(self.probe_name)
            self.probe_name = None

    def _grouped(self, names: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Split names into what one command may carry."""
        groups: dict[int, list[bytes]] = {}
        if self._verbs.by_slot:
            for name in names:
                groups.setdefault(slot_of(name), []).append(name)
        else:
            groups[0] = list(names)
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
        self, command: tuple[bytes, ...], after: Sequence[Sequence[bytes]] = ()
    ) -> asyncio.Future[Any]:
        """Write a command that has a reply of its own, after others that unsubscribe groups."""
        reply: asyncio.Future[Any] = self._loop.create_future()
        names = [name for group in after for name in group]
        ends = itertools.accumulate(map(len, after))
        self._commands.append(_Command(names, reply, [*ends]))
        unsubscribe = self._verbs.unsubscribe
        self._write([*(pack((unsubscribe, *group)) for group in after), pack(command)])
        return reply

    def ask(self, command: tuple[bytes, ...]) -> asyncio.Future[Any]:
        """Ask on the link itself, behind all that was sent before; the reply, errors included.

        A server that speaks RESP2 answers nothing but PING here.

        Raises:
            LinkLost: there is no link; later, through the future: the link was lost.
        """
        if self.link is None:
            raise LinkLost("no link")
        return self._ask(command)

    def _write(self, data: Sequence[bytes]) -> None:
        if self.link is not None and data:
            # A write that fails needs no care: the reading of the link is about to find out.
            with contextlib.suppress(LinkLost):
                self.link.write(b"".join(data))

    # What is answered

    def answered(self, reply: Any) -> None:
        """An acknowledgement, a reply, or something that the server did by itself."""
        kind = reply[0] if isinstance(reply, list) and reply else None
        if kind == self._verbs.subscribed:
            self._subscribed(reply[1])
        elif isinstance(reply, ReplyError):
            self._refused(reply)
        elif kind == self._verbs.unsubscribed:
            self._unsubscribed(reply[1])
        elif kind == b"pong" or not is_push(reply):
            self._replied(reply)
        self._check_settled()

    def _subscribed(self, name: bytes) -> None:
        command = self._commands[0] if self._commands else None
        if command is None or command.reply is not None or command.names[command.answered] != name:
            return
        command.answered += 1
        if command.answered == len(command.names):
            self._commands.popleft()
        if name == self.probe_name:
            self._probe_pause.granted()
            self._probe_warned = False
        self._settle(name)

    def _unsubscribed(self, name: bytes) -> None:
        """What we ended is settled by the reply behind it; what we did not, was taken away."""
        command = self._commands[0] if self._commands else None
        if command is not None and command.ends:
            command.take_end(name)
        grant = self._grants.get(name)
        if grant is not None and self._is_active(grant):
            self.routes.pop(name, None)
            grant.sent = None
            self.owner.lost([grant.channel], "unsubscribed by the server")
            self.owner.displaced([grant.channel], None)
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
            self.routes[grant.name] = grant.channel  # The reply's own name may go.
            self.fruitful = True
            reason = self.owner.granted(grant.channel)
            if reason is not None:
                self.regained.setdefault(reason, []).append(grant.channel)
        elif not grant.unanswered and not grant.wanted and grant.sent != self._verbs.subscribe:
            self._drop(grant)

    # What is refused

    def _refused(self, error: ReplyError) -> None:
        if not self._commands:
            raise LinkLost(f"the server says: {error}")
        command = self._commands[0]
        if command.reply is not None:
            # A name that the server refuses to end is not delivered any more: it has no route.
            if command.take_error(error):
                self._replied(error)
            return
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
                    self.probe_name = None
                    self._loop.call_later(PROBE_RETRY_SECONDS, self._flush_soon)
                continue
            grant.unanswered -= 1
            if grant.wanted and not grant.unanswered:
                grant.sent = None
                channels.append(grant.channel)
            elif not grant.wanted and not grant.unanswered:
                self._drop(grant)
        if channels:
            self.owner.displaced(channels, error)

    def _displace_probe(self) -> None:
        """The slot of the probe's name has moved: choose another name."""
        self.probe_name = None
        self._flush_soon()

    def _refused_one(self, grant: _Grant, error: ReplyError) -> None:
        grant.unanswered -= 1
        grant.sent = None
        self.owner.refused(grant.channel, error)
        if grant.wanted:
            self._loop.call_later(REFUSED_RETRY_SECONDS, self.ask_again, grant.name)
        elif not grant.unanswered:
            self._drop(grant)

    def _no_probe(self, error: ReplyError) -> None:
        """The server does not let us listen to the probe; an ACL may be corrected: ask again."""
        self.probe_name = None
        pause = self._probe_pause.refused(error) + PROBE_RETRY_SECONDS
        self._loop.call_later(pause, self._flush_soon)
        if not self._probe_warned:
            self._probe_warned = True
            logger.warning(
                "%s: the server refuses the delivery probe's channel (%s); allow the pattern %r in "
                "the user's ACL, or a server that stops delivering goes unnoticed",
                self._url,
                error,
                f"{self._url.options.prefix}:*",
            )
