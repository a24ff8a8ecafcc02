"""Runs Lua scripts on one server, in the order of the calls of each connection.

A script is loaded once for each connection, in the same write as its first call. Therefore a new
connection, after a restart or a failover, needs no second attempt.

A server may forget its scripts while the connection stays (SCRIPT FLUSH). Then the calls under way
return with NOSCRIPT, and were not executed. They are written again when all calls under way have
been answered, and before the calls that were made meanwhile: all of them keep their order. One case
is left. If another client loads the script first, the server executes the later ones of the calls
under way before the repeated ones.

`cluster.scripts` adds the redirections of a cluster.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from ...errors import BrokerClosed, ConfigurationError
from ...url import BrokerURL
from .connection import Connection
from .deadlines import ignore_result
from .parser import ReplyError
from .pipeline import Pipeline
from .routes import Route
from .scripts import Script, is_error, is_missing

__all__ = ["RETRY_SECONDS", "ScriptRunner"]

ATTEMPTS = 5
"""How often a call that certainly was not executed is made, before its error is raised."""
RETRY_SECONDS = 0.1
"""Pause before a call is repeated on a server that was demoted."""

Replies = asyncio.Future[list[Any]]


class _Call(msgspec.Struct, eq=False):
    """One call of a script.

    Attributes:
        number: its place in the order of the calls.
        commands: the commands without the one that loads the script.
        written: while the call waits for the end of a reload: gets the future of its replies.
    """

    number: int
    script: Script
    commands: Sequence[tuple[bytes, ...]]
    written: asyncio.Future[Replies] | None = None


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
        self._numbers = itertools.count()
        self._waiting: dict[Pipeline, list[_Call]] = {}

    def check(self) -> None:
        """Raise ConfigurationError if the server has no scripts."""
        if self._unavailable:
            raise ConfigurationError(f"{self.url}: {self._unavailable}")

    async def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[bytes],
        on_asked: Callable[[Route], None] | None = None,
    ) -> Any:
        """Run a script and return its reply.

        Args:
            keys: 1..n keys with the same hash tag.
            on_asked: called if another server ran the script because the slot of the keys is on its
                way there, with the server that still has the subscribers of the slot.

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
        """Run a script on this connection; returns the reply, which may be an error.

        Args:
            asking: the slot is being imported by the server of the connection.
        """
        command = script.command_for(keys, args)
        commands = ((b"ASKING",), command) if asking else (command,)
        call = _Call(next(self._numbers), script, commands)
        if pipeline in self._waiting:
            replies = await self._write_later(pipeline, call)
        else:
            replies = await self._write(pipeline, call)
        for _ in range(1, ATTEMPTS):
            if not is_missing(replies[-1]):
                break
            if pipeline not in self._waiting:
                self._begin_reload(pipeline)
            replies = await self._write_later(pipeline, call)
        return self._outcome(pipeline, call, replies)

    def _write(self, pipeline: Pipeline, call: _Call) -> Replies:
        """Write a call, and the script if this connection has not loaded it."""
        known = self._known(pipeline)
        if call.script.sha in known:
            return pipeline.submit(call.commands)
        known.add(call.script.sha)
        return pipeline.submit([call.script.load, *call.commands])

    def _known(self, pipeline: Pipeline) -> set[bytes]:
        """The scripts that the connection has loaded; unknown for one that is still to come."""
        connection = pipeline.connection
        return set() if connection is None else self._loaded.setdefault(connection, set())

    def _outcome(self, pipeline: Pipeline, call: _Call, replies: list[Any]) -> Any:
        """The reply to a call, or the refusal of its script."""
        if len(replies) > len(call.commands) and isinstance(replies[0], ReplyError):
            self._known(pipeline).discard(call.script.sha)
            return replies[0]
        return replies[-1]

    # A server that has forgotten its scripts

    def _begin_reload(self, pipeline: Pipeline) -> None:
        """Let all calls of this connection wait until those under way have been answered."""
        self._known(pipeline).clear()
        fence = pipeline.submit([(b"PING",)])
        self._waiting[pipeline] = []
        fence.add_done_callback(partial(self._end_reload, pipeline))

    async def _write_later(self, pipeline: Pipeline, call: _Call) -> list[Any]:
        """Write a call at the end of the reload; returns the replies."""
        call.written = asyncio.get_running_loop().create_future()
        self._waiting[pipeline].append(call)
        return await (await call.written)

    def _end_reload(self, pipeline: Pipeline, fence: Replies) -> None:
        """Write the calls that wait, in the order of the calls. The first one loads the script."""
        ignore_result(fence)  # If the connection was lost, the calls are written to the next one.
        for call in sorted(self._waiting.pop(pipeline), key=lambda call: call.number):
            if call.written is None or call.written.done():
                continue  # Its caller was cancelled.
            try:
                replies = self._write(pipeline, call)
            except BrokerClosed as exc:
                call.written.set_exception(exc)
            else:
                replies.add_done_callback(ignore_result)
                call.written.set_result(replies)
