"""Lua scripts on a server: their commands, and what an error reply to one of them means.

A script is called by its hash. The server forgets scripts at a restart and at SCRIPT FLUSH, so each
connection loads those that it uses, and a caller loads again after `NOSCRIPT`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from .parser import ReplyError
from .pipeline import Pipeline

__all__ = ["Script", "is_missing", "run_scripts", "surely_refused"]

_REFUSED = (
    "MOVED", "ASK", "TRYAGAIN", "NOSCRIPT", "READONLY", "BUSY", "LOADING", "CLUSTERDOWN",
    "MASTERDOWN", "NOREPLICAS", "MISCONF", "NOPERM",
)  # fmt: skip


class Script:
    """A Lua script.

    Attributes:
        load: the command that loads it.
        sha: its hash, in hexadecimal digits.
    """

    __slots__ = ("load", "sha")

    def __init__(self, text: str) -> None:
        source = text.strip().encode()
        self.load: tuple[bytes, ...] = (b"SCRIPT", b"LOAD", source)
        self.sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()

    def command(self, key: bytes, *arguments: bytes) -> tuple[bytes, ...]:
        """The command that runs it on one key, which is declared."""
        return (b"EVALSHA", self.sha, b"1", key, *arguments)


def is_missing(reply: object) -> bool:
    """Whether a reply says that the server does not know the script."""
    return isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT")


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
