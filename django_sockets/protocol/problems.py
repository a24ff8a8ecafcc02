"""The errors of the protocol, as its clients see them.

docs/client-protocol.md has the table of the codes. No text shows anything of the application.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = [
    "FORBIDDEN",
    "INTERNAL",
    "LIMIT",
    "NOT_SUBSCRIBED",
    "NO_PRESENCE",
    "TOKEN_EXPIRED",
    "TOKEN_FOREIGN",
    "TOKEN_INVALID",
    "TOO_MANY_REQUESTS",
    "UNAVAILABLE",
    "UNKNOWN_FRAME",
    "BrokenFrame",
    "InvalidFrame",
    "Problem",
]


class Problem(NamedTuple):
    """One error.

    Attributes:
        code: a text for programs.
        message: an English text for developers.
        temporary: the same request may succeed later.
        after_seconds: the time after which it may, or None.
    """

    code: str
    message: str
    temporary: bool = False
    after_seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The object `error` of a frame."""
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "temporary": self.temporary,
        }
        if self.after_seconds is not None:
            error["after"] = self.after_seconds
        return error


UNKNOWN_FRAME = Problem("unknown_frame", "The server knows no key of this frame.")
TOO_MANY_REQUESTS = Problem(
    "too_many_requests", "Too many requests are unanswered.", temporary=True, after_seconds=1
)
LIMIT = Problem("limit", "The client would have too many subscriptions.")
FORBIDDEN = Problem("forbidden", "The client may not do this.")
NO_PRESENCE = Problem("forbidden", "The token does not give the right to presence.")
TOKEN_INVALID = Problem("token_invalid", "The token is not valid for this channel.")
TOKEN_EXPIRED = Problem("token_expired", "The token has expired.")
TOKEN_FOREIGN = Problem("token_foreign", "The token is for another user or session.")
NOT_SUBSCRIBED = Problem("not_subscribed", "The client is not subscribed to the channel.")
UNAVAILABLE = Problem("unavailable", "The broker does not answer.", temporary=True, after_seconds=1)
INTERNAL = Problem("internal", "The server failed to handle this.")


class BrokenFrame(Exception):
    """A frame is not a JSON object. The connection is closed with 1007."""


class InvalidFrame(Exception):
    """A frame is no valid frame of the protocol.

    Attributes:
        request_id: the `id` of the frame; None without a valid one.
        problem: the error to answer.
    """

    def __init__(self, message: str, request_id: int | None = None) -> None:
        self.request_id = request_id
        self.problem = Problem("invalid_frame", message)
        super().__init__(message)
