"""The seam for observers: objects that are told what the library does, while it does it.

Metrics and traces are built on this module. An application can write an observer of its own: a
subclass of `Observer` with the methods that it needs, passed to `add_observer`.

Without observers, the library tests one attribute where it would report something: once for each
publish, batch of messages, call of a hook, handshake and end of a connection. Nothing is measured
then.

Any module may import this one. `django_sockets.observability` has the same names for applications.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from .log import LogThrottle, whereabouts

__all__ = [
    "BatchDelivered",
    "ConnectFailed",
    "ConnectionClosed",
    "ConsumerSlow",
    "CountBatch",
    "GapSignalled",
    "HandshakeEnded",
    "HistoryHealed",
    "HookCalled",
    "LinkLost",
    "LinkRestored",
    "Observer",
    "Published",
    "RequestAnswered",
    "add_observer",
    "log_failure",
    "remove_observer",
    "seam",
]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, 10.0)

# Later versions may add fields to these classes, and methods to `Observer`.


class Published(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A publish has ended.

    Attributes:
        broker: the scheme of the broker's URL, such as "redis".
        channels: number of channels, 1..n.
        payload_bytes: size of the payload without its header.
        seconds: time until the server has answered for every channel.
        outcome: "ok"; "failed": it did not reach the server for some channels; "unknown": for some
            channels it may have reached it; "cancelled"; or "error" for another exception.
    """

    broker: str
    channels: int
    payload_bytes: int
    seconds: float
    outcome: str


class BatchDelivered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A batch of messages was passed to its subscribers or to their queues.

    Attributes:
        broker: the scheme of the broker's URL.
        messages: number of messages for local subscribers, without late and repeated ones.
        deliveries: number of messages for all subscribers together.
        seconds: time from the arrival of the batch to the end of its delivery. The hub waits within
            it for clients that read slowly.
        lag_seconds: time from the publish of the first message to its arrival. It is measured at
            most every 0.01 s, and only if a hub of this process has published the message: messages
            carry no time. None for all other batches.
    """

    broker: str
    messages: int
    deliveries: int
    seconds: float
    lag_seconds: float | None


class HookCalled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A method of an application's socket class has ended. The library's own defaults do not count.

    Attributes:
        socket: the class.
        hook: the name of the method, such as "connect", or of a method with `@on`.
        seconds: time until it returned, including the wait for a worker thread.
        outcome: "ok", "error" or "cancelled"; "refused" for `Reject`, `NotAllowed`, `RequestError`.
    """

    socket: type
    hook: str
    seconds: float
    outcome: str


class RequestAnswered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request of a client of the protocol `django-sockets.v1` was handled.

    Attributes:
        seconds: time until the answer was ready.
        outcome: "ok"; "refused": the handler raised `RequestError` or `NotAllowed`; "invalid": the
            request could not be decoded; "error"; or "cancelled".
    """

    seconds: float
    outcome: str


class HandshakeEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A websocket handshake was accepted or refused. Each handshake is reported once.

    Attributes:
        socket: the class. None if a router or a middleware of the library refused the handshake, or
            the handshake failed there: the class is not known yet.
        outcome: "accepted", "refused" or "failed" (the client left, the server cancelled it, or an
            error ended it).
        status: the HTTP status of a refusal; 101 if it was accepted; 0 if it failed. A client of
            the protocol `django-sockets.v1` gets a close code instead, such as 4401.
        seconds: time of the decision, with the hook `authorize` and without `connect`. If a
            middleware refused it: the time of this middleware. If a router did: 0.
    """

    socket: type | None
    outcome: str
    status: int
    seconds: float


class ConnectionClosed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An accepted websocket has ended. `disconnect` is called next.

    Attributes:
        socket: the class.
        code: the close code. A client may choose any number.
    """

    socket: type
    code: int


class GapSignalled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One subscriber was told that messages may be missing.

    Attributes:
        broker: the scheme of the broker's URL.
        reason: see `Gap.reason`. It may be any text of the broker.
    """

    broker: str
    reason: str


class HistoryHealed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The healing of one channel with a history has ended.

    Attributes:
        broker: the scheme of the broker's URL.
        seconds: time since the loss was noticed.
        outcome: "healed": nothing is missing; "gap": a gap was signalled.
    """

    broker: str
    seconds: float
    outcome: str


class ConsumerSlow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A client or another reader was found to be too slow. Its overflow policy applies from now on.

    Attributes:
        messages: number of messages that wait for it.
        size_bytes: their size.
    """

    messages: int
    size_bytes: int


class LinkLost(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A connection to a server was lost.

    Attributes:
        broker: the scheme of the broker's URL.
        link: "publishing" or "subscribing"; "sentinel" for a connection to a sentinel, without
            which messages flow as long as the primary lives.
        reason: a text for people. It may quote the server.
    """

    broker: str
    link: str
    reason: str


class LinkRestored(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A lost connection to a server was replaced.

    Attributes:
        broker: the scheme of the broker's URL.
        link: "publishing" or "subscribing". Connections to sentinels are not reported.
        seconds: time since the loss. A publishing connection is only replaced when something is
            published.
    """

    broker: str
    link: str
    seconds: float


class ConnectFailed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A server could not be reached, or refused the connection.

    Attributes:
        broker: the scheme of the broker's URL.
        link: "publishing", "subscribing" or "sentinel"; see `LinkLost`.
    """

    broker: str
    link: str


CountBatch: TypeAlias = Callable[[str, int, int, float, float | None], None]
"""A function for the numbers of a batch. Its arguments are the attributes of `BatchDelivered`, in
their order."""


class Observer:
    """The base class of observers. Subclass it, and override the methods that you need.

    The methods are called on the thread that does the work, often on an event loop, and several
    threads may call them at once. They must not wait. An exception is logged, and nothing else
    follows from it. It is a class and no Protocol, so that new methods do not break subclasses.
    """

    __slots__ = ()

    def published(self, event: Published) -> None:
        """A publish has ended."""

    def batch_delivered(self, event: BatchDelivered) -> None:
        """A batch of messages was delivered."""

    def hook_called(self, event: HookCalled) -> None:
        """A hook of an application has ended."""

    def request_answered(self, event: RequestAnswered) -> None:
        """A request of a client was handled."""

    def handshake_ended(self, event: HandshakeEnded) -> None:
        """A handshake was accepted or refused."""

    def connection_closed(self, event: ConnectionClosed) -> None:
        """An accepted websocket has ended."""

    def gap_signalled(self, event: GapSignalled) -> None:
        """A subscriber was told of a gap."""

    def history_healed(self, event: HistoryHealed) -> None:
        """The healing of a channel has ended."""

    def consumer_slow(self, event: ConsumerSlow) -> None:
        """A consumer was found to be too slow."""

    def link_lost(self, event: LinkLost) -> None:
        """A connection to a server was lost."""

    def link_restored(self, event: LinkRestored) -> None:
        """A lost connection was replaced."""

    def connect_failed(self, event: ConnectFailed) -> None:
        """A connection to a server could not be made."""


_METHODS = [name for name in vars(Observer) if not name.startswith("_")]


class _Observers(Observer):
    """All observers as one. An error of one of them does not reach the library or the others.

    The library reports batches to `Seam.count_batch` instead.
    """

    __slots__ = _METHODS

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        for name in _METHODS:
            setattr(self, name, _to_all(name, observers))


def _to_all(name: str, observers: tuple[Observer, ...]) -> Callable[[Any], None]:
    # An observer that does not inherit from `Observer` may lack a method that is new.
    methods = [method for one in observers if (method := getattr(one, name, None)) is not None]

    def tell(event: Any) -> None:
        for method in methods:
            try:
                method(event)
            except Exception as exc:
                log_failure(name, exc)

    return tell


def _batches_to_all(observers: tuple[Observer, ...]) -> CountBatch | None:
    methods = [method for one in observers if (method := _count_batch_of(one)) is not None]
    if len(methods) <= 1:
        return methods[0] if methods else None

    def tell(
        broker: str, messages: int, deliveries: int, seconds: float, lag_seconds: float | None
    ) -> None:
        for method in methods:
            try:
                method(broker, messages, deliveries, seconds, lag_seconds)
            except Exception as exc:
                log_failure("batch_delivered", exc)

    return tell


def _count_batch_of(observer: Any) -> CountBatch | None:
    """The function of an observer for batches; None if it does not override `batch_delivered`.

    The observer behind the metrics has a method `count_batch`, because making an event takes as
    long as counting it.
    """
    if hasattr(observer, "count_batch"):
        count_batch: CountBatch = observer.count_batch
        return count_batch
    method = getattr(observer, "batch_delivered", None)
    if method is None or getattr(method, "__func__", None) is Observer.batch_delivered:
        return None

    def tell(
        broker: str, messages: int, deliveries: int, seconds: float, lag_seconds: float | None
    ) -> None:
        method(
            BatchDelivered(
                broker=broker,
                messages=messages,
                deliveries=deliveries,
                seconds=seconds,
                lag_seconds=lag_seconds,
            )
        )

    return tell


def log_failure(name: str, exc: Exception) -> None:
    """Log the error of an observer in a method of this name."""
    text = "an observer failed in %s"
    _failures.log(logging.ERROR, whereabouts(exc), text, name, exc_info=exc, extra={"hook": name})


class Seam:
    """The place where the library finds its observers.

    Attributes:
        observers: the observers.
        observer: all observers as one; None without observers. Test it for None once for each
            thing that is observed, and not for each message or socket of a batch.
        count_batch: tells all observers of a batch; None if none of them overrides
            `batch_delivered`. If it raises, pass the exception to `log_failure`.
    """

    __slots__ = ("count_batch", "observer", "observers")

    def __init__(self) -> None:
        self.change(())

    def change(self, observers: tuple[Observer, ...]) -> None:
        """Tell these observers from now on, and no others."""
        self.observers = observers
        self.observer: Observer | None = _Observers(observers) if observers else None
        self.count_batch = _batches_to_all(observers)


seam = Seam()
_changing = threading.Lock()


def add_observer(observer: Observer) -> None:
    """Tell an observer what this process does from now on. Adding it again has no effect.

    A forked child has the observers of its parent.
    """
    with _changing:
        if observer not in seam.observers:
            seam.change((*seam.observers, observer))


def remove_observer(observer: Observer) -> None:
    """Tell an observer nothing more. It has no effect for an object that is not an observer."""
    with _changing:
        seam.change(tuple(one for one in seam.observers if one is not observer))
