"""Traces with OpenTelemetry: the tracer of the library on top of `opentelemetry-api`.

The names of messaging attributes and operations are those of the semantic conventions 1.30:
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

from ..errors import ConfigurationError, NotAllowed, Reject, RequestError, pip_command
from ..log import LogThrottle, whereabouts
from ..tracer import HANDSHAKE_TRACE, tracing

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import Getter
    from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as exc:
    raise ConfigurationError(
        f"the package {exc.name!r} is not installed: run {pip_command('otel')}"
    ) from exc

__all__ = ["start_tracing", "stop_tracing"]

logger = logging.getLogger("django_sockets")
_failures = LogThrottle(logger, 10.0)

SCHEMA_URL = "https://opentelemetry.io/schemas/1.30.0"
SWITCHING_PROTOCOLS = 101
"""HTTP status of an accepted handshake (RFC 9110, section 15.2.2)."""
SERVER_ERRORS = 500
"""A span of a server has failed from this HTTP status on:
https://opentelemetry.io/docs/specs/semconv/http/http-spans/#status"""

_ACTIVE = contexts.create_key("django_sockets.span")
"""The key of the innermost span of the library in a context."""
_w3c = TraceContextTextMapPropagator()
_NOTHING = Context()


def start_tracing(
    *,
    tracer_provider: TracerProvider | None = None,
    channel_template: Callable[[str], str | None] | None = None,
) -> None:
    """Make spans in this process from now on: for handshakes, hooks, requests and messages.

    Call it in each process that publishes or has sockets, for example in `AppConfig.ready`. A
    second call replaces the first one. A forked child traces like its parent.

    Args:
        tracer_provider: the provider that samples and exports; by default the global one, which may
            be set later.
        channel_template: returns the name of a kind of channels, such as "room:{id}" for "room:17",
            or None. It becomes part of the names of spans, so there should be few of them.
    """
    try:
        ours = version("django-sockets")
    except PackageNotFoundError:  # It runs from a checkout.
        ours = ""
    tracer = trace.get_tracer("django_sockets", ours, tracer_provider, SCHEMA_URL)
    tracing.tracer = _Tracer(tracer, channel_template)


def stop_tracing() -> None:
    """Begin no more spans, and send no more contexts."""
    tracing.tracer = None


class _Span:
    """A span as the library uses it; see `tracer.Span`.

    Args:
        base: the span becomes the current one in a copy of this context. None: not at all.
    """

    __slots__ = ("_base", "_span", "_token", "is_open", "traceparent")

    def __init__(self, span: trace.Span, base: Context | None) -> None:
        self._span = span
        self._base = base
        self._token: Any = None
        self.is_open = True
        self.traceparent = _traceparent(span)

    def __enter__(self) -> _Span:
        if self._base is not None:
            here = contexts.set_value(_ACTIVE, self, self._base)
            self._token = contexts.attach(trace.set_span_in_context(self._span, here))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.is_open = False
        # A coroutine that the interpreter closes may run in another context.
        if self._token is not None and kind is not GeneratorExit:
            contexts.detach(self._token)
        try:
            if exc is not None and self._span.is_recording():
                self._note(exc)
            self._span.end()
        except Exception as failure:
            _note_failure(failure)

    def _note(self, exc: BaseException) -> None:
        if isinstance(exc, (NotAllowed, Reject, RequestError)):
            self.outcome("refused")
        elif not isinstance(exc, Exception):
            self.outcome("cancelled")
        else:
            kind = type(exc)
            self._span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}")
            self._span.record_exception(exc)
            self._span.set_status(Status(StatusCode.ERROR, str(exc)))

    def outcome(self, outcome: str, status: int | None = None) -> None:
        self._span.set_attribute("django_sockets.outcome", outcome)
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if outcome == "error" or (status or 0) >= SERVER_ERRORS:
            self._span.set_status(Status(StatusCode.ERROR))


class _Tracer:
    """See `tracer.Tracer`."""

    def __init__(
        self, tracer: trace.Tracer, channel_template: Callable[[str], str | None] | None
    ) -> None:
        self._tracer = tracer
        self._channel_template = channel_template

    def publish(self, broker: str, channels: Sequence[str], payload_bytes: int) -> _Span | None:
        attributes = {
            "messaging.system": broker,
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.message.body.size": payload_bytes,
        }
        if len(channels) > 1:
            attributes["messaging.batch.message_count"] = len(channels)
        channel = channels[0] if len(channels) == 1 else None
        return self._of_message("publish", channel, SpanKind.PRODUCER, attributes, None)

    def process(
        self, broker: str, channel: str, payload_bytes: int, subscribers: int, traceparent: str
    ) -> _Span | None:
        attributes = {
            "messaging.system": broker,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.message.body.size": payload_bytes,
            "django_sockets.subscribers": subscribers,
        }
        parent = _context_of(traceparent)
        return self._of_message("process", channel, SpanKind.CONSUMER, attributes, parent)

    def _of_message(
        self,
        name: str,
        channel: str | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        parent: Context | None,
    ) -> _Span | None:
        try:
            if channel is not None:
                attributes["messaging.destination.name"] = channel
                template = self._channel_template and self._channel_template(channel)
                if template:
                    attributes["messaging.destination.template"] = template
                    name = f"{name} {template}"
            span = self._tracer.start_span(name, parent, kind, attributes)
        except Exception as exc:
            _note_failure(exc)
            return None
        return _Span(span, None) if span.is_recording() else None

    def handshake(self, scope: MutableMapping[str, Any], socket: type) -> _Span | None:
        here = contexts.get_current()
        if not trace.get_current_span(here).get_span_context().is_valid:
            here = propagate.extract(scope, here, _HEADERS)
        attributes = {
            "django_sockets.socket": socket.__name__,
            "http.request.method": "GET",
            "network.protocol.name": "websocket",
            "url.path": str(scope.get("path", "")),
            "url.scheme": str(scope.get("scheme", "")),
        }
        span = self._begin(f"{socket.__name__} handshake", here, SpanKind.SERVER, attributes)
        if span is not None and span.traceparent is not None:
            scope[HANDSHAKE_TRACE] = span.traceparent
        return span

    def hook(self, scope: Mapping[str, Any], socket: type, hook: Any) -> _Span | None:
        name, attributes = _hook_names(socket, hook)
        here = contexts.get_current()
        if _is_inside(here):
            return self._begin(name, here, SpanKind.INTERNAL, attributes)
        # The context of a task is not a parent: it may be that of the whole connection, or of the
        # request in which the task was made.
        handshake = scope.get(HANDSHAKE_TRACE)
        if handshake is None:
            return self._begin(name, _NOTHING, SpanKind.SERVER, attributes)
        parent = _context_of(handshake)
        if getattr(hook, "__name__", "") == "connect":
            return self._begin(name, parent, SpanKind.INTERNAL, attributes)
        links = [Link(trace.get_current_span(parent).get_span_context())]
        return self._begin(name, _NOTHING, SpanKind.SERVER, attributes, links)

    def broadcast_hook(self, socket: type, hook: Any, traceparent: str | None) -> _Span | None:
        if traceparent is not None:
            name, attributes = _hook_names(socket, hook)
            return self._begin(name, _context_of(traceparent), SpanKind.INTERNAL, attributes)
        if trace.get_current_span() is trace.INVALID_SPAN:
            return None
        return _Span(trace.INVALID_SPAN, _NOTHING)  # The task was made within another trace.

    def request(self) -> _Span | None:
        return self._begin("request", _NOTHING, SpanKind.SERVER, None)

    def _begin(
        self,
        name: str,
        parent: Context,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        links: Sequence[Link] = (),
    ) -> _Span | None:
        """Begin a span that becomes the current one, also if it is not recorded."""
        try:
            span = self._tracer.start_span(name, parent, kind, attributes, links)
        except Exception as exc:
            _note_failure(exc)
            return None
        return _Span(span, parent)


def _note_failure(exc: Exception) -> None:
    _failures.log(logging.ERROR, whereabouts(exc), "the tracer failed", exc_info=exc)


def _is_inside(context: Context) -> bool:
    """A span of the library is open in this context, and not only the origin of its task."""
    active = contexts.get_value(_ACTIVE, context)
    return isinstance(active, _Span) and active.is_open


def _traceparent(span: trace.Span) -> str | None:
    """The header of a span (https://www.w3.org/TR/trace-context/); None if it is not sampled."""
    context = span.get_span_context()
    flags = context.trace_flags
    if not flags.sampled or not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"


def _context_of(traceparent: str) -> Context:
    """A context with a remote parent; an empty one if the text is not valid."""
    return _w3c.extract({"traceparent": traceparent}, _NOTHING)


@functools.lru_cache(maxsize=1024)
def _hook_names(socket: type, hook: Any) -> tuple[str, Mapping[str, Any]]:
    """The name of a span and its attributes."""
    name = getattr(hook, "__name__", type(hook).__name__)
    qualified = f"{socket.__module__}.{socket.__qualname__}.{name}"
    attributes = {"django_sockets.socket": socket.__name__, "code.function.name": qualified}
    return f"{socket.__name__}.{name}", attributes


class _Headers(Getter[Any]):
    """Reads the headers of an ASGI scope."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        wanted = key.lower().encode("latin-1")
        found = [
            bytes(value).decode("latin-1")
            for name, value in carrier.get("headers") or ()
            if name.lower() == wanted
        ]
        return found or None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        headers: Iterable[tuple[bytes, bytes]] = carrier.get("headers") or ()
        return [bytes(name).decode("latin-1") for name, _ in headers]


_HEADERS = _Headers()
