"""Keeps secrets out of errors: out of their text and out of the frames of their tracebacks.

Error reporters and Django's debug page print the local variables of each frame of a traceback, also
of the tracebacks of the causes. A frame of a driver, or a frame that parses a URL, holds the
password. An error that may have passed such a frame therefore loses its traceback and its causes
before it leaves the library. Its message includes the messages of the causes.

Any module may import this one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .errors import ConfigurationError

__all__ = ["frameless", "mask", "without_frames"]

_Error = TypeVar("_Error", bound=BaseException)
_P = ParamSpec("_P")
_R = TypeVar("_R")

SHORTEST_SECRET = 4
"""Shorter secrets are not masked, because they also occur inside ordinary words."""


def without_frames(error: _Error) -> _Error:
    """Remove the traceback and the causes of an error.

    Raise the result outside of the `except` block. Inside, the error would get a cause again.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def frameless(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function that raises its ConfigurationError without frames and arguments."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except ConfigurationError as exc:
            error = without_frames(exc)
        del args, kwargs
        raise error

    return call


def mask(text: str, *secrets: str | None) -> str:
    """Replace each secret in a text with "***"."""
    for secret in secrets:
        if secret and len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text
