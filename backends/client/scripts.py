"""Lua scripts on the server that a key belongs to.

A script is loaded once for each connection, in the same write as its first call, so that the
calls of one connection are executed in their order. If a server has forgotten a script (NOSCRIPT,
after SCRIPT FLUSH or behind a proxy), the call was certainly not executed: the script is loaded and
the call is repeated. The repeated calls keep their order, because a pipeline answers in order.

`cluster.scripts` adds the redirections of a cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ...errors import ConfigurationError
from ...url import BrokerURL
from .connection import Connection
from .parser import ReplyError
from .pipeline import NotSent, Pipeline

__all__ = ["ATTEMPTS", "Script", "ScriptRunner"]

ATTEMPTS = 5
"""How often a call that certainly was not executed is made, before its error is raised."""
RETRY_SECONDS = 0.1
"""Pause before a call is repeated on a server that was demoted."""


class Script:
    """A Lua script.

    Args:
        source: its text. Every key that it uses is in KEYS, and all of them have one hash tag.
    """

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        # The name that EVALSHA uses; no secret depends on it.
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()


class ScriptRunner:
    """Runs scripts on one server.

    Args:
        pipeline_for: returns the connection for a key.
        pipelines: returns the connections to all servers that hold keys.
        unavailable: why the server has no scripts; empty if it has.
    """

    def __init__(
        self,
        url: BrokerURL,
        pipeline_for: Callable[[bytes], Pipeline],
        pipelines: Callable[[], Iterable[Pipeline]],
        unavailable: str = "",
    ) -> None:
        self.url = url
        self._pipeline_for = pipeline_for
        self._pipelines = pipelines
        self._unavailable = unavailable
        self._loaded: WeakKeyDictionary[Connection, set[bytes]] = WeakKeyDictionary()

    def check(self) -> None:
        """Raise ConfigurationError if the server has no scripts."""
        if self._unavailable:
            raise ConfigurationError(f"{self.url}: {self._unavailable}")

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        """Run a script and return its reply.

        Args:
            keys: 1..n keys with the same hash tag.

        Raises:
            NotSent: certainly not executed.
            OutcomeUnknown: written, and no reply came.
            ReplyError: the server refused it, or the script failed.
            BrokerClosed: the broker is closed.
        """
        self.check()
        for attempt in range(ATTEMPTS):
            pipeline = self._pipeline_for(keys[0])
            reply = await self.attempt(pipeline, script, keys, args)
            if not self.was_forgotten(pipeline, script, reply):
                if not is_error(reply, "READONLY"):
                    break
                # A former primary. The next connection leads to the new one, if there is one.
                pipeline.reset("the server is a replica now")
                await asyncio.sleep(RETRY_SECONDS * attempt)
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def each_server(self, command: Callable[[Pipeline], Any]) -> None:
        """Await `command` with the connection to each server that holds keys."""
        self.check()
        for pipeline in self._pipelines():
            await command(pipeline)

    async def attempt(
        self,
        pipeline: Pipeline,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[bytes],
        *,
        asking: bool = False,
    ) -> Any:
        """Run a script once on this connection; returns the reply, which may be an error.

        Args:
            asking: the slot is being imported by the server of the connection.
        """
        commands: list[tuple[bytes, ...]] = []
        connection = pipeline.connection
        known: set[bytes] = set()
        if connection is not None:
            known = self._loaded.setdefault(connection, known)
        if script.sha not in known:
            commands.append((b"SCRIPT", b"LOAD", script.source))
            known.add(script.sha)
        if asking:
            commands.append((b"ASKING",))
        commands.append((b"EVALSHA", script.sha, b"%d" % len(keys), *keys, *args))
        replies = await pipeline.submit(commands)
        if commands[0][0] == b"SCRIPT" and isinstance(replies[0], ReplyError):
            known.discard(script.sha)
            return replies[0]
        return replies[-1]

    def was_forgotten(self, pipeline: Pipeline, script: Script, reply: object) -> bool:
        """Whether the reply is NOSCRIPT; the next attempt then loads the script again."""
        if not is_error(reply, "NOSCRIPT"):
            return False
        if pipeline.connection is not None:
            self._loaded.get(pipeline.connection, set()).discard(script.sha)
        return True


def is_error(reply: object, *codes: str) -> bool:
    """Whether a reply is an error that begins with one of these codes."""
    return isinstance(reply, ReplyError) and str(reply).startswith(codes)


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
