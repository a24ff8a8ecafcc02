"""capture_broadcasts: the broadcasts of this process, as a list."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import pprint
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ..codec import encode
from ..deadlines import with_deadline
from ..overrides import observe_positions, observe_publishes

__all__ = ["Broadcast", "CapturedBroadcasts", "capture_broadcasts"]

TIMEOUT_SECONDS = 5.0
ANY = object()
"""Default of `data`: any data matches."""


class _Pair(NamedTuple):
    channel: str
    data: Any


class Broadcast(_Pair):
    """One broadcast to one channel. It is equal to the pair `(channel, data)`.

    Attributes:
        channel: its name. A broadcast to several channels is captured once for each.
        data: the data as a receiver gets it: a tuple is a list, a datetime is its text.
        position: the place behind it in the history of its channel, for `since`; None before the
            broadcast has returned, and if it was not kept.
    """

    _payload: bytes = b""
    position: str | None = None

    def __repr__(self) -> str:
        kept = "" if self.position is None else f", position={self.position!r}"
        return f"Broadcast(channel={self.channel!r}, data={self.data!r}{kept})"


class CapturedBroadcasts(list[Broadcast]):
    """A list of `(channel, data)`, in the order of the broadcasts; see `capture_broadcasts`.

    Use it with `with` or `async with`: the list grows while the block runs, and is kept afterwards.
    Broadcasts may come from any thread.
    """

    def __init__(self, channel: str | int | None, deliver: bool) -> None:
        super().__init__()
        self._channel = None if channel is None else str(channel)
        self._deliver = deliver
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], object]] = []
        self._blocks: list[contextlib.ExitStack] = []

    def __enter__(self) -> CapturedBroadcasts:
        block = contextlib.ExitStack()
        block.enter_context(observe_publishes(self._record))
        block.enter_context(observe_positions(self._record_position))
        self._blocks.append(block)
        return self

    def __exit__(self, *_: object) -> None:
        self._blocks.pop().close()

    async def __aenter__(self) -> CapturedBroadcasts:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def _record(self, channels: Sequence[str], payload: bytes, is_text: bool, /) -> Sequence[str]:
        """Record a publish, and return the channels that it is still sent to."""
        mine = [name for name in channels if self._channel in (None, name)]
        if not mine:
            return channels
        data = _data(payload, is_text)
        with self._lock:
            for name in mine:
                broadcast = Broadcast(name, data)
                broadcast._payload = payload
                self.append(broadcast)
            wakers = list(self._wakers)
        for wake in wakers:
            wake()
        return channels if self._deliver else [name for name in channels if name not in mine]

    def _record_position(self, channel: str, payload: bytes, position: str, /) -> None:
        """Record the position of the oldest such broadcast that has none."""
        with self._lock:
            for one in self:
                if one.position is None and (one.channel, one._payload) == (channel, payload):
                    one.position = position
                    return

    def on(self, channel: str | int) -> list[Any]:
        """The data of the broadcasts to one channel."""
        return [data for name, data in list(self) if name == str(channel)]

    def assert_broadcast(self, channel: str | int, data: Any = ANY) -> None:
        """Fail unless this was broadcast; the error shows the difference to the closest broadcast.

        Args:
            channel: one channel.
            data: the data, in any form that `broadcast` takes. Default: any data.

        Raises:
            AssertionError: there was no such broadcast.
        """
        seen = self.on(channel)
        expected = data if data is ANY else _data(*encode(data))
        if not seen or (data is not ANY and expected not in seen):
            raise AssertionError(self._problem(str(channel), expected, seen))

    def _problem(self, channel: str, expected: Any, seen: list[Any]) -> str:
        if not seen:
            others = sorted({name for name, _ in list(self)})
            where = f"; there was on: {', '.join(map(repr, others))}" if others else " at all"
            return f"nothing was broadcast on {channel!r}{where}"
        wanted = pprint.pformat(expected).splitlines()
        texts = [pprint.pformat(data).splitlines() for data in seen]
        closest = max(texts, key=lambda text: difflib.SequenceMatcher(a=wanted, b=text).ratio())
        lines = difflib.unified_diff(
            wanted, closest, "expected", f"closest of {len(seen)} on {channel!r}", lineterm=""
        )
        return "\n".join([f"not broadcast on {channel!r}:", *lines])

    def wait_for(self, count: int = 1, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Wait, in a `def` test, until `count` broadcasts in total have been captured.

        Raises:
            AssertionError: there were fewer within `timeout_seconds`.
        """
        enough = threading.Event()
        with self._woken_by(count, enough.set):
            if not enough.wait(timeout_seconds):
                raise AssertionError(self._too_few(count, timeout_seconds))

    async def async_wait_for(
        self, count: int = 1, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """`wait_for` for a coroutine."""
        loop = asyncio.get_running_loop()
        enough = asyncio.Event()
        with self._woken_by(count, lambda: loop.call_soon_threadsafe(enough.set)):
            try:
                await with_deadline(timeout_seconds, enough.wait())
            except asyncio.TimeoutError:
                raise AssertionError(self._too_few(count, timeout_seconds)) from None

    @contextlib.contextmanager
    def _woken_by(self, count: int, wake: Callable[[], object]) -> Iterator[None]:
        def waker() -> None:
            if len(self) >= count:
                wake()

        with self._lock:
            self._wakers.append(waker)
        waker()
        try:
            yield
        finally:
            with self._lock:
                self._wakers.remove(waker)

    def _too_few(self, count: int, timeout_seconds: float) -> str:
        return f"{len(self)} of {count} broadcasts came in {timeout_seconds:g} s: {list(self)!r}"


def _data(payload: bytes, is_text: bool) -> Any:
    return json.loads(payload) if is_text else payload


def capture_broadcasts(
    channel: str | int | None = None, *, deliver: bool = True
) -> CapturedBroadcasts:
    """Record the broadcasts of all sockets, broadcasters and hubs of this process in a block.

        with capture_broadcasts() as captured:
            place_order()
        assert captured == [("orders", {"id": 7})]

    Captures may be nested; each records. A refused broadcast (a bad channel, a payload that is too
    large) is not recorded.

    Args:
        channel: record only this channel. Default: None, all channels.
        deliver: whether a recorded broadcast is sent to the broker. With False the broker need not
            exist. Default: True.
    """
    return CapturedBroadcasts(channel, deliver)
