"""Lua scripts on the server that a key belongs to: commands, error replies, and reads by script.

A script is called by its hash. A server that does not have the script (after a restart or SCRIPT
FLUSH, or behind a proxy) answers NOSCRIPT. The call was then certainly not executed: the script is
loaded and the call is repeated.

`script_runner` calls scripts whose order matters. Messages of the history are sent by
`cluster.router`, which keeps their order. Reads of the history use `run_scripts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from .parser import ReplyError
from .pipeline import NotSent, Pipeline

__all__ = [
    "Script",
    "is_error",
    "is_missing",
    "not_sent",
    "run_scripts",
    "scan_and_unlink",
    "surely_refused",
]

_REFUSED = (
    "MOVED", "ASK", "TRYAGAIN", "NOSCRIPT", "READONLY", "BUSY", "LOADING", "CLUSTERDOWN",
    "MASTERDOWN", "NOREPLICAS", "MISCONF", "NOPERM",
)  # fmt: skip


class Script:
    """A Lua script.

    Args:
        source: its text. Every key that it uses is in KEYS, and all of them have one hash tag.

    Attributes:
        load: the command that loads it.
        sha: its hash, in hexadecimal digits.
    """

    __slots__ = ("load", "sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source.strip().encode()
        self.load: tuple[bytes, ...] = (b"SCRIPT", b"LOAD", self.source)
        # The name that EVALSHA uses; no secret depends on it.
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()

    def command(self, key: bytes, *arguments: bytes) -> tuple[bytes, ...]:
        """The command that runs it on one key, which is declared."""
        return self.command_for((key,), arguments)

    def command_for(self, keys: Sequence[bytes], arguments: Sequence[bytes]) -> tuple[bytes, ...]:
        """The command that runs it on 1..n keys, which are declared."""
        return (b"EVALSHA", self.sha, b"%d" % len(keys), *keys, *arguments)


def is_error(reply: object, *codes: str) -> bool:
    """Whether a reply is an error that begins with one of these codes."""
    return isinstance(reply, ReplyError) and str(reply).startswith(codes)


def is_missing(reply: object) -> bool:
    """Whether a reply says that the server does not know the script."""
    return is_error(reply, "NOSCRIPT")


def surely_refused(error: ReplyError) -> bool:
    """Whether the script certainly had no effect.

    This holds if the server refused EVALSHA itself, or the first write of the script, which returns
    that error. An ACL may also refuse a later command of the script. The server then names the line
    of the script (Redis 7, Valkey 9).
    """
    text = str(error)
    return text.startswith(_REFUSED) and "@user_script" not in text and " in script" not in text


async def run_scripts(
    pipeline: Pipeline, script: Script, calls: Sequence[tuple[bytes, ...]]
) -> list[Any]:
    """Run a script that may be repeated; returns the reply of each call, including errors.

    Args:
        calls: 1..n commands made by `Script.command`.

    Raises:
        NotSent, OutcomeUnknown, BrokerClosed: see `Pipeline.submit`.
    """
    replies = await pipeline.submit(calls)
    missing = [index for index, reply in enumerate(replies) if is_missing(reply)]
    if missing:
        again = await pipeline.submit([script.load, *(calls[index] for index in missing)])
        for index, reply in zip(missing, again[1:], strict=True):
            replies[index] = reply
    return replies


async def scan_and_unlink(pipeline: Pipeline, pattern: bytes) -> None:
    """Remove the keys of one server that match a pattern.

    Raises:
        NotSent, OutcomeUnknown, ReplyError: some keys may remain.
    """
    cursor = b"0"
    while True:
        (reply,) = await pipeline.submit([(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"1000")])
        if isinstance(reply, ReplyError):
            raise reply
        cursor, names = reply
        if names:
            # One command for each key, because the keys of a cluster's server have many slots.
            await pipeline.submit([(b"UNLINK", name) for name in names])
        if cursor in (b"0", 0):
            return


def not_sent(problem: str, cause: BaseException | None = None) -> NotSent:
    """A NotSent error with a cause."""
    error = NotSent(problem)
    error.__cause__ = cause
    return error
