"""Keep secrets out of errors: out of their text and out of the frames that they refer to.

Error reporters and Django's debug page print the local variables of each frame of a traceback, of
the causes' tracebacks as well. A frame of a driver, or one of ours that reads a URL, holds the
password. So an error that may have passed such a frame forgets its traceback and its causes before
it leaves the library; its message says what the causes said. Anyone may import this module.
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
"""A shorter one would be found inside ordinary words."""


def without_frames(error: _Error) -> _Error:
    """Forget the traceback and the causes of an error.

    Raise the result outside of the `except` block, or the error gets its causes back.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def frameless(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function raise its ConfigurationError without frames, and without its arguments."""

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
    """Replace each secret in a text by "***"."""
    for secret in secrets:
        if secret and len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text
