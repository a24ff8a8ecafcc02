"""The parts of the library that a test can replace or observe. Nothing else is made for tests.

`django_sockets.testing` is built on this module. Test tools of other projects can use it, too:

- `observe_publishes` calls a function before each publish of the process.
- `observe_positions` calls a function after each kept message, with its position.
- `override_default_config` replaces the default configuration.
- `override_clock` replaces the clock of the presence of channels, which has long times.
- `override_database_context` replaces the handling of database connections around `def` hooks.
- `Config.open_broker` is the function that makes the broker of a hub. A `BrokerFactory` can put a
  broker of its own around the real one: `dataclasses.replace(config, open_broker=factory)`.

Overrides apply to the whole process, on every thread, until their `with` block ends. They can be
nested: the newest default configuration and the newest database context are in force, and every
observer is called. The lists of this module are for the library only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias, TypeVar

from .broker import Broker, Sink
from .url import BrokerURL

__all__ = [
    "BrokerFactory",
    "Clock",
    "DatabaseContext",
    "PositionObserver",
    "PublishObserver",
    "Timer",
    "channels_after_observers",
    "clock_of",
    "observe_positions",
    "observe_publishes",
    "override_clock",
    "override_database_context",
    "override_default_config",
]

T = TypeVar("T")

BrokerFactory: TypeAlias = Callable[[BrokerURL, Sink], Broker]
"""Makes the broker of one hub, without connecting. `django_sockets.broker` has the contract."""

DatabaseContext: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Makes the context in which one `def` hook runs on its worker thread."""


class PublishObserver(Protocol):
    """Called before each publish of an application, on the event loop of the hub."""

    def __call__(self, channels: Sequence[str], payload: bytes, is_text: bool, /) -> Sequence[str]:
        """Observe one publish. It must not wait, and an error that it raises fails the publish.

        Args:
            channels: 1..n valid names.
            payload: the encoded data, within `max_payload_bytes`.
            is_text: the payload is JSON text in UTF-8; otherwise it is binary data.

        Returns:
            The channels that the message is still published to.
        """


class PositionObserver(Protocol):
    """Called when a published message was kept, before the publish returns."""

    def __call__(self, channel: str, payload: bytes, position: str, /) -> None:
        """Take note of the place behind the message in the history of its channel."""


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Do not call it. Idempotent."""


class Clock(Protocol):
    """Tells the time and makes calls at a time, on the event loop of one hub."""

    def time(self) -> float:
        """Seconds since an arbitrary moment. They never go back."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the event loop when `time()` has reached `when`."""


publish_observers: list[PublishObserver] = []
position_observers: list[PositionObserver] = []
clocks: list[Clock] = []
default_configs: list[Any] = []
database_contexts: list[DatabaseContext] = []


def observe_publishes(observer: PublishObserver) -> AbstractContextManager[None]:
    """Call `observer` before each publish of this process, within a `with` block."""
    return _added(publish_observers, observer)


def observe_positions(observer: PositionObserver) -> AbstractContextManager[None]:
    """Call `observer` with the position of each kept message, within a `with` block.

    Publishing takes a round trip more meanwhile, because the hub reads the position.
    """
    return _added(position_observers, observer)


def override_clock(clock: Clock) -> AbstractContextManager[None]:
    """Use `clock` for the presence of channels, within a `with` block.

    A hub takes the clock when it first uses presence, and keeps it.
    """
    return _added(clocks, clock)


def override_default_config(config: Any) -> AbstractContextManager[None]:
    """Make `config` the default configuration of the process, within a `with` block.

    Args:
        config: a `Config`, or anything else that `load_config` takes, except None.
    """
    return _added(default_configs, config)


def override_database_context(context: DatabaseContext) -> AbstractContextManager[None]:
    """Run each `def` hook in `context()`, within a `with` block.

    By default, broken and old database connections are closed before and after each hook.
    """
    return _added(database_contexts, context)


@contextlib.contextmanager
def _added(overrides: list[T], override: T) -> Iterator[None]:
    overrides.append(override)
    try:
        yield
    finally:
        overrides.remove(override)


class _LoopClock:
    """The clock of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.time = loop.time
        self._loop = loop

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return self._loop.call_at(when, callback)


def clock_of(loop: asyncio.AbstractEventLoop) -> Clock:
    """The clock for the presence of a hub on this event loop."""
    return clocks[-1] if clocks else _LoopClock(loop)


def channels_after_observers(channels: list[str], payload: bytes, is_text: bool) -> list[str]:
    """Call the observers in order, and return the channels that they leave."""
    for observer in tuple(publish_observers):
        channels = list(observer(channels, payload, is_text))
    return channels
