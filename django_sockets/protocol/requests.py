"""Messages and requests of a client: calls their handler, and answers with its result."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, Protocol

from ..errors import BrokerError, EncodeError, NotAllowed, RequestError
from ..observer import RequestAnswered, seam
from ..tracer import Span, tracing
from .frames import error_frame, ok_frame
from .problems import FORBIDDEN, INTERNAL, UNAVAILABLE, Problem

__all__ = ["Handlers", "InvalidMessage", "answer_message", "problem_of"]


class InvalidMessage(Exception):
    """A message cannot be decoded to the type of its handler.

    Attributes:
        text: the reason, which may be shown to the client.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


class Handlers(Protocol):
    """The application's handlers of one connection."""

    def call_handler(self, text: str) -> Awaitable[Any]:
        """Call the handler of a message, and return its result. Raises InvalidMessage."""

    async def handler_failed(self, exc: Exception, *, is_request: bool) -> None:
        """Log an error of a handler. Without a request, the application decides what follows."""

    async def message_invalid(self, exc: InvalidMessage) -> bool:
        """Report a message without an id. Returns True if a hook of the application handles it."""


async def answer_message(handlers: Handlers, request_id: int | None, text: str) -> bytes | None:
    """Handle a message. Returns the frame to answer; None for no answer.

    Args:
        request_id: the `id` of a request; None for a message without an answer.
        text: the JSON text of the message.
    """
    tracer = tracing.tracer
    if tracer is None or request_id is None or (span := tracer.request()) is None:
        return await _answer(handlers, request_id, text)
    with span:
        return await _answer(handlers, request_id, text, span)


async def _answer(
    handlers: Handlers, request_id: int | None, text: str, span: Span | None = None
) -> bytes | None:
    is_request = request_id is not None
    observer = seam.observer if is_request else None
    began = 0.0 if observer is None else time.perf_counter()
    outcome = "ok"
    try:
        try:
            result = await handlers.call_handler(text)
        except InvalidMessage as exc:
            outcome = "invalid"
            if not is_request and await handlers.message_invalid(exc):
                return None
            return error_frame(Problem("invalid_message", exc.text), request_id)
        return None if request_id is None else _ok(request_id, result)
    except RequestError as exc:
        outcome = "refused"
        return error_frame(problem_of(exc), request_id)
    except Exception as exc:
        outcome = "refused" if isinstance(exc, NotAllowed) else "error"
        await handlers.handler_failed(exc, is_request=is_request)
        return error_frame(problem_of(exc), request_id) if is_request else None
    except BaseException:
        outcome = "cancelled"
        raise
    finally:
        if span is not None:
            span.outcome(outcome)
        if observer is not None:
            seconds = time.perf_counter() - began
            observer.request_answered(RequestAnswered(seconds=seconds, outcome=outcome))


def _ok(request_id: int, result: Any) -> bytes:
    if isinstance(result, (bytes, bytearray, memoryview)):
        raise EncodeError("a handler returned bytes: return JSON data, or send the bytes with send")
    return ok_frame(request_id, result)


def problem_of(exc: Exception) -> Problem:
    """The part of an error that is sent to the client."""
    if isinstance(exc, RequestError):
        return Problem(exc.code, exc.message, exc.temporary, exc.after_seconds)
    if isinstance(exc, NotAllowed):
        return FORBIDDEN
    return UNAVAILABLE if isinstance(exc, BrokerError) else INTERNAL
