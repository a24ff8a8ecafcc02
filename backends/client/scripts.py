"""Lua scripts on the server that a key belongs to: commands, error replies, and how they are run.

A script is called by its hash. A server that does not have the script (after a restart or SCRIPT
FLUSH, or behind a proxy) answers NOSCRIPT. The call was then certainly not executed: the script is
loaded and the call is repeated.

`ScriptRunner` loads a script once for each connection, in the same write as its first call, so that
the calls of one connection are executed in their order. If a server forgets a script, a call that
is repeated may be executed after later calls that did not wait for it. `cluster.scripts` adds the
redirections of a cluster.

Messages of the history are sent by `cluster.router`, which keeps their order. Reads of the history
use `run_scripts`.
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

__all__ = [
    "ATTEMPTS",
    "RETRY_SECONDS",
    "Script",
    "ScriptRunner",
    "is_error",
    "is_missing",
    "not_sent",
    "run_scripts",
    "scan_and_unlink",
    "surely_refused",
]

ATTEMPTS = 5
"""How often a call that certainly was not executed is made, before its error is raised."""
RETRY_SECONDS = 0.1
"""Pause before a call is repeated on a server that was demoted."""
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
            commands.append(script.load)
            known.add(script.sha)
        if asking:
            commands.append((b"ASKING",))
        commands.append(script.command_for(keys, args))
        replies = await pipeline.submit(commands)
        if commands[0] is script.load and isinstance(replies[0], ReplyError):
            known.discard(script.sha)
            return replies[0]
        return replies[-1]

    def was_forgotten(self, pipeline: Pipeline, script: Script, reply: object) -> bool:
        """Whether the reply is NOSCRIPT; the next attempt then loads the script again."""
        if not is_missing(reply):
            return False
        if pipeline.connection is not None:
            self._loaded.get(pipeline.connection, set()).discard(script.sha)
        return True


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
