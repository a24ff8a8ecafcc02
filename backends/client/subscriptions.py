"""The subscriptions of one broker: requested, granted and lost channels.

Each channel has a place, the server that serves it, and may move to another one. A lost channel is
requested again, and the gap is reported once it is granted again. A subscribe call without an
acknowledgement in time fails, and the channels that only it asked for are unsubscribed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from ...errors import AuthError, BrokerClosed, ConnectError, SubscribeError
from ...log import LogThrottle
from ...loops import OfOneLoop
from ...url import BrokerURL
from ..interest import Interest, keep, withdraw
from ..watches import channel_of
from .parser import ReplyError

__all__ = ["Place", "Subscriptions"]

logger = logging.getLogger("django_sockets")


RETRY_SECONDS = 0.1
"""Pause before the only server is asked again for a channel that it could not serve."""


class Place(Protocol):
    """A server that serves channels, or the lack of one."""

    @property
    def trouble(self) -> ConnectError | None:
        """Why no subscription is possible there at this moment, or None."""

    def want(self, channel: str, name: bytes) -> bool:
        """Subscribe to a channel; True if the server has granted it already."""

    def unwant(self, name: bytes) -> None:
        """Unsubscribe from a channel; nothing is delivered on it from now on."""

    def ask_again(self, name: bytes) -> None:
        """Subscribe again to a channel that the server could not serve."""

    def read(self, name: bytes) -> None:
        """Write the open read of a channel, if its subscription was requested before."""


class _Call(msgspec.Struct, eq=False):
    """One `subscribe` call that waits for `missing` acknowledgements."""

    channels: Sequence[str]
    missing: dict[str, None]
    future: asyncio.Future[None]

    def acknowledge(self, channel: str) -> None:
        self.missing.pop(channel, None)
        if not self.missing and not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class _Channel(Interest, kw_only=True, eq=False):
    """One wanted channel.

    Attributes:
        place: the server that serves it.
        granted: the server has acknowledged the subscription and not lost it since.
        lost: why a granted subscription was lost, until it is granted again.
    """

    name: bytes
    place: Place
    granted: bool = False
    lost: str | None = None


class Subscriptions(OfOneLoop):
    """The wanted channels of one broker, each at the place that serves it.

    Args:
        server_name: the server-side name of a channel.
        place_for: returns the place for a server-side name.
        displaced: called with names that their place could not serve. It moves them, or calls
            `ask_again`. By default the same place is asked again.
    """

    def __init__(
        self,
        url: BrokerURL,
        *,
        server_name: Callable[[str], bytes],
        place_for: Callable[[bytes], Place],
        displaced: Callable[[Sequence[bytes]], None] | None = None,
    ) -> None:
        self._url = url
        self._server_name = server_name
        self._place_for = place_for
        self._displaced = displaced
        self._channels: dict[str, _Channel] = {}
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False
        # All calls have the same timeout, so one timer serves them in the order of their start.
        self._due: dict[_Call, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    # Calls

    async def subscribe(
        self, channels: Sequence[str], behind: Sequence[asyncio.Future[None]] = ()
    ) -> None:
        """See `Broker.subscribe`.

        Args:
            behind: also to be awaited before the call has succeeded. They belong to open reads of
                these channels.
        """
        self.check_open()
        call = self._begin(channels)
        if behind:
            # A channel that was just unsubscribed may still be granted. No command follows then.
            self.read(channels)
        if call is None:
            if behind:
                await asyncio.wait(behind)
                self.check_open()
            return
        try:
            await call.future
            if behind:
                self._due.pop(call, None)
                await asyncio.wait(behind)
                self.check_open()
        except BaseException:
            self.unsubscribe(withdraw(self._channels, channels, call))
            raise
        finally:
            self._due.pop(call, None)
        keep(self._channels, channels, call)

    def _begin(self, channels: Sequence[str]) -> _Call | None:
        """Request channels; returns the call that waits for them, or None if all are granted."""
        missing: dict[str, None] = {}
        for channel in channels:
            state = self._channels.get(channel)
            if state is None:
                name = self._server_name(channel)
                state = self._channels[channel] = _Channel(name=name, place=self._place_for(name))
            if state.place.want(channel, state.name):
                state.granted = True
            else:
                missing[channel] = None
        if not missing:
            for channel in channels:
                self._channels[channel].kept = True
            return None
        call = _Call(channels, missing, self._loop.create_future())
        for channel in channels:
            # Granted channels too: the call that requested them may still be cancelled.
            self._channels[channel].begin(call)
        self._due[call] = self._loop.time() + self._url.options.subscribe_timeout_seconds
        if self._timer is None:
            self._overdue()
        return call

    def _overdue(self) -> None:
        """Fail the calls whose deadline has passed, and set the timer for the next one."""
        self._timer = None
        for call, due in list(self._due.items()):
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._overdue)
                return
            problem = f"no acknowledgement within {self._url.options.subscribe_timeout_seconds:g} s"
            trouble = self._trouble(call.missing)
            if trouble is not None:
                problem += f": {trouble.problem}"
            self._fail(call, problem, trouble)

    def _trouble(self, channels: Iterable[str]) -> ConnectError | None:
        """Why one of these channels has no connection, or None."""
        states = [self._channels[name] for name in channels if name in self._channels]
        return next((s.place.trouble for s in states if s.place.trouble is not None), None)

    def _fail(self, call: _Call, problem: str, cause: Exception | None = None) -> None:
        error = SubscribeError(self._url, problem, channels=call.channels)
        error.__cause__ = cause
        call.fail(error)

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Drop these channels; nothing is delivered on them from now on."""
        for channel in channels:
            state = self._channels.pop(channel, None)
            if state is not None:
                state.place.unwant(state.name)
                for call in state.calls:
                    call.acknowledge(channel)  # The unsubscribe call supersedes it.

    async def aclose(self) -> None:
        """Close; pending and later calls raise BrokerClosed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for call in self._due:
            call.fail(BrokerClosed(self._url))

    def check_open(self) -> None:
        """Raise BrokerClosed after `aclose`."""
        if self._closed:
            raise BrokerClosed(self._url)

    def has(self, channel: str) -> bool:
        """Whether a channel is wanted."""
        return channel in self._channels

    def read(self, channels: Iterable[str]) -> None:
        """Write the open reads of channels whose subscriptions were requested before."""
        for channel in channels:
            state = self._channels.get(channel)
            if state is not None:
                state.place.read(state.name)

    # Places

    def relocate(self, reason_for: Callable[[Place], str]) -> None:
        """Move every channel whose place has changed, and report it as lost.

        Args:
            reason_for: returns the reason for channels of their former place.
        """
        for channel, state in self._channels.items():
            place = self._place_for(state.name)
            if place is not state.place:
                former = state.place
                former.unwant(state.name)
                if state.granted:
                    self.lost([channel], reason_for(former))
                state.place = place
                place.want(channel, state.name)

    def ask_again(self, names: Iterable[bytes]) -> None:
        """Subscribe to names again, each at its place."""
        for name in names:
            self._place_for(name).ask_again(name)

    # `Owner`: reports of the subscribers

    def granted(self, channel: str) -> str | None:
        """See `Owner.granted`."""
        state = self._channels.get(channel)
        if state is None:
            return None
        state.granted = True
        for call in state.calls:
            call.acknowledge(channel)
        lost, state.lost = state.lost, None
        return lost

    def lost(self, channels: Sequence[str], reason: str) -> None:
        """See `Owner.lost`."""
        for channel in channels:
            state = self._channels.get(channel)
            if state is not None:
                state.granted = False
                if state.lost is None:
                    state.lost = reason

    def displaced(self, channels: Sequence[str], error: ReplyError | None) -> None:
        """See `Owner.displaced`."""
        names = [self._channels[c].name for c in channels if c in self._channels]
        if self._displaced is not None:
            self._displaced(names)
        elif error is None:
            self.ask_again(names)
        else:
            self._loop.call_later(RETRY_SECONDS, self.ask_again, names)

    def refused(self, channel: str, error: ReplyError) -> None:
        """See `Owner.refused`."""
        state = self._channels.get(channel)
        if state is None:
            return
        for call in state.calls:
            self._fail(call, f"the server refused the subscription: {error}")
        if state.kept:
            self._throttle.log(
                logging.ERROR,
                "refused",
                "%s: cannot subscribe to %r again: %s",
                self._url,
                channel_of(channel),
                error,
                extra={"broker": self._url, "channel": channel, "reason": error},
            )
        else:
            self.unsubscribe([channel])

    def unreachable(self, channels: Sequence[str], error: ConnectError) -> None:
        """See `Owner.unreachable`. Only wrong credentials fail the calls; other errors may pass."""
        if isinstance(error, AuthError):
            for channel in channels:
                state = self._channels.get(channel)
                for call in state.calls if state is not None else ():
                    self._fail(call, error.problem, error)
