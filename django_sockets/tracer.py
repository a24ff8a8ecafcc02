"""The seam for traces: an object that makes spans, and passes their context to other processes.

Observers are told what has happened. A tracer has to know when something begins, because what a
hook does within its span belongs to the same trace. `django_sockets.observability` has the tracer
for OpenTelemetry.

Without a tracer, the library tests one attribute where a span would begin.

Any module may import this one. It imports nothing of this package.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

__all__ = ["HANDSHAKE_TRACE", "Span", "Tracer", "traced", "tracing"]

HANDSHAKE_TRACE = "django_sockets.traceparent"
"""Key of the scope for the `traceparent` of a handshake with a span that is recorded."""

T = TypeVar("T")


class Span(Protocol):
    """One span. It begins when the tracer makes it, and ends with the `with` statement.

    Attributes:
        traceparent: the context of the span, as in a header of W3C Trace Context, 55 ASCII
            characters; None if its trace is not sampled.
    """

    traceparent: str | None

    def __enter__(self) -> Span:
        """Make the span the current one, where application code runs within it."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the span, with the exception that was raised within it."""

    def outcome(self, outcome: str, status: int | None = None) -> None:
        """Note how it ended, before the `with` statement ends.

        Args:
            status: the HTTP status of the answer to a handshake.
        """


class Tracer(Protocol):
    """Makes spans. No method may raise or wait. None stands for no span."""

    def publish(self, broker: str, channels: Sequence[str], payload_bytes: int) -> Span | None:
        """A publish begins, in the present context. Its `with` statement runs no application code.

        Args:
            broker: the scheme of the broker's URL.
            channels: 1..n names.
        """

    def process(
        self, broker: str, channel: str, payload_bytes: int, subscribers: int, traceparent: str
    ) -> Span | None:
        """A message of a recorded trace is delivered to the local subscribers of its channel."""

    def handshake(self, scope: MutableMapping[str, Any], socket: type) -> Span | None:
        """A handshake begins. If it is recorded, the scope gets `HANDSHAKE_TRACE`."""

    def hook(self, scope: Mapping[str, Any], socket: type, hook: Any) -> Span | None:
        """A method of an application's class is called for one connection."""

    def broadcast_hook(self, socket: type, hook: Any, traceparent: str | None) -> Span | None:
        """A method of an application's class is called with a broadcast.

        Args:
            traceparent: the context of the broadcast; None if it is not traced.
        """

    def request(self) -> Span | None:
        """A request of a client of the protocol `django-sockets.v1` is handled."""


class Tracing:
    """The place where the library finds the tracer.

    Attributes:
        tracer: None without a tracer. Test it for None once for each thing that is traced.
    """

    __slots__ = ("tracer",)

    def __init__(self) -> None:
        self.tracer: Tracer | None = None


tracing = Tracing()


async def traced(span: Span, awaitable: Awaitable[T]) -> T:
    """Await something within a span."""
    with span:
        return await awaitable
