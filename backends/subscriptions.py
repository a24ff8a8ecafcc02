"""The subscriptions of one process at one server: what is wanted, and what the server has granted.

One supervisor task keeps a link up while anything is wanted. Under it run the reader, the PING
deadline and the delivery probe; whichever finds the link dead ends it, and the supervisor connects
again, makes the subscriptions again and reports exactly those that were granted before as lost,
once they are granted again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from ..broker import Sink
from ..errors import AuthError, BrokerClosed, ConnectError, SubscribeError
from ..log import LogThrottle
from ..url import BrokerURL
from .link import Backoff, Link, LinkLost, ReplyError, first_of, keepalive, pack

__all__ = ["Subscriptions"]

logger = logging.getLogger("django_sockets")

SUBSCRIBE, UNSUBSCRIBE, PING = b"SUBSCRIBE", b"UNSUBSCRIBE", b"PING"
NAMES_PER_COMMAND = 1000
REFUSED_RETRY_SECONDS = 1.0
"""A subscription that was granted once and is refused after a reconnect is asked for this often."""


class _Refused(Exception):
    """The server answered a SUBSCRIBE with an error."""


class _Call:
    """One `subscribe` call that waits for `missing` acknowledgements."""

    __slots__ = ("future", "missing")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def acknowledge(self) -> None:
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Channel:
    """One channel: what the callers want, what was sent on the present link, what was answered.

    Attributes:
        granted: a subscribe call for it has returned, and no unsubscribe came since.
        sent: the last command written on the present link.
        unanswered: commands on the present link without an answer.
        lost: why a granted subscription was lost, until it is granted again.
    """

    __slots__ = ("calls", "granted", "lost", "name", "sent", "unanswered", "wanted")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.wanted = False
        self.granted = False
        self.sent: bytes | None = None
        self.unanswered = 0
        self.lost: str | None = None
        self.calls: list[_Call] = []

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


class Subscriptions:
    """The subscribing end of a broker at one server.

    Args:
        open_link: connects; raises ConnectError.
        server_name: the server-side name of a channel.
        sink: takes what is heard.
        probe: runs beside the reader while anything is wanted; raises LinkLost.
        probe_name: server-side name that the probe listens on; messages there go to `on_probe`.

    Attributes:
        probing: the probe's name is subscribed, because something is wanted.
        can_probe: False once the server refused the probe's name.
    """

    def __init__(
        self,
        url: BrokerURL,
        sink: Sink,
        *,
        open_link: Callable[[], Awaitable[Link]],
        server_name: Callable[[str], bytes],
        probe: Callable[[Link], Coroutine[Any, Any, None]],
        probe_name: bytes,
        on_probe: Callable[[bytes], None],
    ) -> None:
        self._url = url
        self._sink = sink
        self._open_link = open_link
        self._server_name = server_name
        self._probe = probe
        self._probe_name = probe_name
        self._on_probe = on_probe
        self.probing = False
        self.can_probe = True
        self._channels: dict[str, _Channel] = {}
        self._by_name: dict[bytes, str] = {}
        self._active: dict[bytes, str] = {}
        self._dirty: dict[str, None] = {}
        self._regained: dict[str, list[str]] = {}
        self._commands: deque[_Command] = deque()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._flush_due = False
        self._needed = asyncio.Event()
        self._backoff = Backoff()
        self._trouble: Exception | None = None
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False

    # What the callers want

    async def subscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.subscribe`."""
        if self._closed:
            raise BrokerClosed(self._url)
        waiting = []
        for channel in channels:
            state = self._channels.get(channel)
            if state is None:
                state = self._channels[channel] = _Channel(self._server_name(channel))
                self._by_name[state.name] = channel
            state.wanted = True
            if state.active:
                self._active[state.name] = channel
            else:
                waiting.append(channel)
                self._dirty[channel] = None
        if waiting:
            await self._wait(channels, waiting)
        for channel in channels:
            state = self._channels.get(channel)
            if state is not None and state.wanted:
                state.granted = True

    async def _wait(self, channels: Sequence[str], waiting: list[str]) -> None:
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run(), name="django_sockets subscriber")
        self._needed.set()
        self._flush_soon()
        call = _Call(len(waiting))
        for channel in waiting:
            self._channels[channel].calls.append(call)
        seconds = self._url.options.subscribe_timeout_seconds
        try:
            await asyncio.wait_for(call.future, seconds)
        except BaseException as exc:
            self._withdraw(call, waiting)
            if isinstance(exc, asyncio.TimeoutError):
                problem = f"no acknowledgement within {seconds:g} s"
                if self._trouble is not None:
                    problem += f": {getattr(self._trouble, 'problem', self._trouble)}"
                raise SubscribeError(self._url, problem, channels=channels) from self._trouble
            if isinstance(exc, ConnectError):
                raise SubscribeError(self._url, exc.problem, channels=channels) from exc
            if isinstance(exc, _Refused):
                problem = f"the server refused the subscription: {exc}"
                raise SubscribeError(self._url, problem, channels=channels) from None
            raise

    def _withdraw(self, call: _Call, waiting: Sequence[str]) -> None:
        """A call ended without success: nobody wants what only it asked for."""
        orphans = []
        for channel in waiting:
            state = self._channels.get(channel)
            if state is not None:
                if call in state.calls:
                    state.calls.remove(call)
                if not state.granted and not state.calls:
                    orphans.append(channel)
        self.unsubscribe(orphans)

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Want these channels no more; nothing is delivered on them from now on."""
        for channel in channels:
            state = self._channels.get(channel)
            if state is None:
                continue
            state.wanted = state.granted = False
            state.lost = None
            self._active.pop(state.name, None)
            calls, state.calls = state.calls, []
            for call in calls:
                call.acknowledge()  # Superseded: the state is what this later call asked for.
            if state.sent is None and not state.unanswered:
                self._drop(channel, state)
            else:
                self._dirty[channel] = None
        self._flush_soon()

    def _drop(self, channel: str, state: _Channel) -> None:
        self._dirty.pop(channel, None)
        del self._channels[channel]
        del self._by_name[state.name]
        if not self._channels and self._link is None:
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
        for channel in self._dirty:
            state = self._channels[channel]
            verb = SUBSCRIBE if state.wanted else UNSUBSCRIBE
            if state.sent == verb or (state.sent is None and verb == UNSUBSCRIBE):
                continue
            state.sent = verb
            state.unanswered += 1
            commands[verb].append(state.name)
        self._dirty.clear()
        wanted = any(state.wanted for state in self._channels.values())
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
        # A write that fails needs no care: the reader of the same link is about to find out.
        with contextlib.suppress(LinkLost):
            self._link.write(pack((verb, *names)))

    def _ping(self) -> asyncio.Future[None]:
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send(PING, (), pong)
        return pong

    # What is heard

    async def _read(self, link: Link) -> None:
        active, regained = self._active, self._regained
        batch: list[tuple[str, bytes]] = []
        while True:
            for reply in await link.read():
                if isinstance(reply, list) and reply:
                    kind = reply[0]
                    if kind == b"message":
                        if regained:
                            self._report_regained()
                        name = reply[1]
                        channel = active.get(name)
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

    def _answered(self, kind: bytes, reply: Sequence[Any]) -> None:
        """An acknowledgement, or an unsubscription that the server made by itself."""
        if kind == b"pong":
            self._ponged()
            return
        if kind not in (b"subscribe", b"unsubscribe"):
            return
        name = reply[1]
        channel = self._by_name.get(name)
        command = self._commands[0] if self._commands else None
        if (
            command is not None
            and command.verb.lower() == kind
            and command.names[command.answered] == name
        ):
            command.answered += 1
            if command.answered == len(command.names):
                self._commands.popleft()
            if channel is not None:
                self._channels[channel].unanswered -= 1
                self._settle(channel)
        elif kind == b"unsubscribe" and channel is not None:
            self._taken_away(channel, "unsubscribed by the server")

    def _settle(self, channel: str) -> None:
        """Act on the last answer that a channel was waiting for."""
        state = self._channels[channel]
        if state.unanswered:
            return
        if state.active:
            self._active[state.name] = channel
            self._backoff.reset()
            if state.lost is not None:
                self._regained.setdefault(state.lost, []).append(channel)
                state.lost = None
            calls, state.calls = state.calls, []
            for call in calls:
                call.acknowledge()
        elif not state.wanted and state.sent != SUBSCRIBE:
            self._drop(channel, state)

    def _taken_away(self, channel: str, reason: str) -> None:
        state = self._channels[channel]
        if state.active:
            self._active.pop(state.name, None)
            state.lost, state.sent = reason, None
            self._dirty[channel] = None
            self._flush_soon()

    def _refused(self, error: ReplyError) -> None:
        if not self._commands:
            raise LinkLost(f"the server says: {error}")
        command = self._commands.popleft()
        if command.pong is not None:
            if not command.pong.done():
                command.pong.set_result(None)  # An answer all the same.
        elif len(command.names) > 1:
            for name in command.names:  # Only some may be forbidden: find out which.
                self._send(command.verb, [name])
        else:
            self._refused_one(command.names[0], error)

    def _refused_one(self, name: bytes, error: ReplyError) -> None:
        channel = self._by_name.get(name)
        if channel is None:
            self._no_probe(error)
            return
        state = self._channels[channel]
        state.unanswered -= 1
        state.sent = None
        calls, state.calls = state.calls, []
        for call in calls:
            call.fail(_Refused(str(error)))
        if state.granted:
            self._trouble = error
            logger.error("%s: cannot subscribe to %r again: %s", self._url, channel, error)
            asyncio.get_running_loop().call_later(REFUSED_RETRY_SECONDS, self._retry, channel)

    def _retry(self, channel: str) -> None:
        if channel in self._channels:
            self._dirty[channel] = None
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

    def _ponged(self) -> None:
        if self._commands and self._commands[0].pong is not None:
            pong = self._commands.popleft().pong
            if pong is not None and not pong.done():
                pong.set_result(None)

    def _report_regained(self) -> None:
        for reason, channels in self._regained.items():
            self._sink.lost(channels, reason)
        self._regained.clear()

    # The life of links

    async def _run(self) -> None:
        while True:
            await self._needed.wait()
            try:
                link = await self._open_link()
            except ConnectError as exc:
                self._trouble = exc
                self._throttle.log(logging.WARNING, "connect", "cannot subscribe: %s", exc)
                if isinstance(exc, AuthError):
                    self._fail_calls(exc)
            else:
                await self._live(link)
            await self._backoff.pause()

    async def _live(self, link: Link) -> None:
        self._link = link
        self._trouble = None
        self._dirty.update(dict.fromkeys(self._channels))
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
        """The link is gone: remember what it had granted, and ask for nothing that nobody wants."""
        self._link = None
        self.probing = False
        self._commands.clear()
        self._active.clear()
        for lost, channels in self._regained.items():
            for channel in channels:
                if channel in self._channels:
                    self._channels[channel].lost = lost
        self._regained.clear()
        for channel, state in list(self._channels.items()):
            if state.active and state.lost is None:
                state.lost = reason
            state.sent, state.unanswered = None, 0
            if not state.wanted:
                self._drop(channel, state)
        if not self._channels:
            self._needed.clear()

    def _fail_calls(self, error: Exception) -> None:
        for state in list(self._channels.values()):
            calls, state.calls = state.calls, []
            for call in calls:
                call.fail(error)

    async def aclose(self) -> None:
        """Close the link; calls that wait raise BrokerClosed."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail_calls(BrokerClosed(self._url))
