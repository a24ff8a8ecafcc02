"""The subscriptions of one broker: who asked for what, what was granted, and what was lost.

A channel that was granted and lost is asked for again by its reader; once it is granted again, the
loss is reported in the stream. A call that is not acknowledged in time wants none of the channels
that only it asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ..errors import AuthError, BrokerClosed, ConnectError, SubscribeError
from ..log import LogThrottle
from ..url import BrokerURL
from .link import ReplyError
from .reader import Reader

__all__ = ["Subscriptions"]

logger = logging.getLogger("django_sockets")


class _Refused(Exception):
    """The server answered a subscribe with an error."""


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
    """One channel that somebody wants.

    Attributes:
        kept: a subscribe call for it has returned, so a failed one does not end it.
        lost: why a granted subscription was lost, until it is granted again.
    """

    __slots__ = ("calls", "kept", "lost", "name", "reader")

    def __init__(self, name: bytes, reader: Reader) -> None:
        self.name = name
        self.reader = reader
        self.kept = False
        self.lost: str | None = None
        self.calls: list[_Call] = []


class Subscriptions:
    """The wanted channels of one broker, each at the reader of the server that serves it.

    Args:
        server_name: the server-side name of a channel.
        reader_for: the reader for a channel.
    """

    def __init__(
        self,
        url: BrokerURL,
        *,
        server_name: Callable[[str], bytes],
        reader_for: Callable[[str], Reader],
    ) -> None:
        self._url = url
        self._server_name = server_name
        self._reader_for = reader_for
        self._channels: dict[str, _Channel] = {}
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False

    # What the callers want

    async def subscribe(self, channels: Sequence[str]) -> None:
        """See `Broker.subscribe`."""
        if self._closed:
            raise BrokerClosed(self._url)
        states, waiting = [], []
        for channel in channels:
            state = self._channels.get(channel)
            if state is None:
                state = _Channel(self._server_name(channel), self._reader_for(channel))
                self._channels[channel] = state
            states.append(state)
            if not state.reader.want(channel, state.name):
                waiting.append(channel)
        if waiting:
            await self._wait(channels, waiting)
        for state in states:
            state.kept = True

    async def _wait(self, channels: Sequence[str], waiting: list[str]) -> None:
        call = _Call(len(waiting))
        for channel in waiting:
            self._channels[channel].calls.append(call)
        seconds = self._url.options.subscribe_timeout_seconds
        try:
            await asyncio.wait_for(call.future, seconds)
        except asyncio.TimeoutError:
            trouble = self._trouble(waiting)
            self._withdraw(call, waiting)
            problem = f"no acknowledgement within {seconds:g} s"
            if trouble is not None:
                problem += f": {trouble.problem}"
            raise SubscribeError(self._url, problem, channels=channels) from trouble
        except ConnectError as exc:
            self._withdraw(call, waiting)
            raise SubscribeError(self._url, exc.problem, channels=channels) from exc
        except _Refused as exc:
            self._withdraw(call, waiting)
            problem = f"the server refused the subscription: {exc}"
            raise SubscribeError(self._url, problem, channels=channels) from None
        except BaseException:
            self._withdraw(call, waiting)
            raise

    def _trouble(self, channels: Sequence[str]) -> ConnectError | None:
        """Why one of these channels has no link, if that is so."""
        states = [self._channels[name] for name in channels if name in self._channels]
        return next((s.reader.trouble for s in states if s.reader.trouble is not None), None)

    def _withdraw(self, call: _Call, waiting: Sequence[str]) -> None:
        """A call ended without success: nobody wants what only it asked for."""
        orphans = []
        for channel in waiting:
            state = self._channels.get(channel)
            if state is not None:
                if call in state.calls:
                    state.calls.remove(call)
                if not state.kept and not state.calls:
                    orphans.append(channel)
        self.unsubscribe(orphans)

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Want these channels no more; nothing is delivered on them from now on."""
        for channel in channels:
            state = self._channels.pop(channel, None)
            if state is not None:
                state.reader.unwant(state.name)
                for call in state.calls:
                    call.acknowledge()  # Superseded: this later call has its way.

    async def aclose(self) -> None:
        """Calls that wait raise BrokerClosed, and so do later ones."""
        self._closed = True
        self._fail_calls(list(self._channels), BrokerClosed(self._url))

    # What the readers report

    def granted(self, channel: str) -> str | None:
        """See `Owner.granted`."""
        state = self._channels.get(channel)
        if state is None:
            return None
        calls, state.calls = state.calls, []
        for call in calls:
            call.acknowledge()
        lost, state.lost = state.lost, None
        return lost

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """See `Owner.lost`."""
        for channel in channels:
            state = self._channels.get(channel)
            if state is not None and state.lost is None:
                state.lost = reason

    def refused(self, channel: str, error: ReplyError) -> None:
        """See `Owner.refused`."""
        state = self._channels.get(channel)
        if state is None:
            return
        self._fail_calls([channel], _Refused(str(error)))
        if state.kept:
            self._throttle.log(
                logging.ERROR,
                "refused",
                "%s: cannot subscribe to %r again: %s",
                self._url,
                channel,
                error,
            )
        else:
            self.unsubscribe([channel])

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """See `Owner.unreachable`. Waiting helps against everything but wrong credentials."""
        if isinstance(error, AuthError):
            self._fail_calls(channels, error)

    def _fail_calls(self, channels: Sequence[str], error: Exception) -> None:
        for channel in channels:
            state = self._channels.get(channel)
            if state is not None:
                calls, state.calls = state.calls, []
                for call in calls:
                    call.fail(error)
