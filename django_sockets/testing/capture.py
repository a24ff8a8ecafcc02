"""capture_broadcasts: what anybody in this process broadcasts, as a list."""

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
from ..hub.hub import taps

__all__ = ["Broadcast", "CapturedBroadcasts", "capture_broadcasts"]

TIMEOUT_SECONDS = 5.0
ANY = object()
"""Default of `data`: whatever it is."""


class Broadcast(NamedTuple):
    """One broadcast to one channel.

    Attributes:
        channel: where; a broadcast to several channels is captured once for each.
        data: as a receiver gets it: a tuple has become a list, a datetime its text.
    """

    channel: str
    data: Any


class CapturedBroadcasts(list[Broadcast]):
    """The broadcasts in the order in which they were made; made by `capture_broadcasts`.

    A list of `(channel, data)`. Used with `with` or `async with`, it fills while the block runs
    and stays as it is afterwards. Broadcasts may come from any thread.
    """

    def __init__(self, channel: str | int | None, deliver: bool) -> None:
        super().__init__()
        self._channel = None if channel is None else str(channel)
        self._deliver = deliver
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], object]] = []

    def __enter__(self) -> CapturedBroadcasts:
        taps.append(self._tap)
        return self

    def __exit__(self, *_: object) -> None:
        taps.remove(self._tap)

    async def __aenter__(self) -> CapturedBroadcasts:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def _tap(self, channels: Sequence[str], payload: bytes, is_text: bool) -> Sequence[str]:
        """Note a publish; the channels that it shall still go to."""
        mine = [name for name in channels if self._channel in (None, name)]
        if not mine:
            return channels
        data = _data(payload, is_text)
        with self._lock:
            self.extend(Broadcast(name, data) for name in mine)
            wakers = list(self._wakers)
        for wake in wakers:
            wake()
        return channels if self._deliver else [name for name in channels if name not in mine]

    def on(self, channel: str | int) -> list[Any]:
        """The data of what was broadcast to one channel."""
        return [data for name, data in list(self) if name == str(channel)]

    def assert_broadcast(self, channel: str | int, data: Any = ANY) -> None:
        """Fail, with the difference to what comes closest, unless this was broadcast.

        Args:
            channel: where.
            data: what, in any form that `broadcast` takes; left out, whatever it was.

        Raises:
            AssertionError: it was not.
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
        """Wait, in a plain test, until so many broadcasts in all were captured.

        Raises:
            AssertionError: fewer came in time.
        """
        enough = threading.Event()
        with self._woken_by(count, enough.set):
            if not enough.wait(timeout_seconds):
                raise AssertionError(self._too_few(count, timeout_seconds))

    async def async_wait_for(
        self, count: int = 1, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """`wait_for` in a coroutine."""
        loop = asyncio.get_running_loop()
        enough = asyncio.Event()
        with self._woken_by(count, lambda: loop.call_soon_threadsafe(enough.set)):
            try:
                await asyncio.wait_for(enough.wait(), timeout_seconds)
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
    """Record what sockets, broadcasters and hubs of this process broadcast meanwhile.

        with capture_broadcasts() as captured:
            place_order()
        assert captured == [("orders", {"id": 7})]

    Captures may nest: each records. What was refused (a bad channel, a payload too large) was not
    broadcast.

    Args:
        channel: only this one; None for all.
        deliver: False keeps what is captured from the broker, which then need not even exist.
    """
    return CapturedBroadcasts(channel, deliver)
