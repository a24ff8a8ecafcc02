"""Queues on a Redis-like server: a list for each queue, next to the channel of the same name.

The list of the channel `<prefix>:{<name>}` is `<prefix>:{<name>}:q`, in the same slot. An entry is
the time at which it expires, as 16 digits of milliseconds by the server's clock, and the payload.
The list itself expires with its youngest entry. Each call is one script with declared keys of one
slot, which serverless services require. The name of the channel is no key: a second key would make
the call fail with TRYAGAIN while the slot migrates.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from ...broker import QueueEntry
from ...errors import QueueError
from ...url import BrokerURL
from .commands import PLAIN, server_name
from .parser import ReplyError
from .pipeline import NotSent, OutcomeUnknown
from .script_runner import ScriptRunner
from .scripts import Script, scan_and_unlink

__all__ = ["QueueCalls"]

DIGITS = 16
"""The digits of the time in front of each entry."""

_NOW = """
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
"""
PUSH = Script(
    _NOW
    + """
-- KEYS: list, mark or nothing. ARGV: capacity, expiry in ms, payload, channel, doorbell, command
if KEYS[2] and not redis.call('SET', KEYS[2], '1', 'PX', ARGV[2], 'NX') then return 1 end
while true do
  local oldest = redis.call('LINDEX', KEYS[1], 0)
  if not oldest or tonumber(string.sub(oldest, 1, 16)) > now then break end
  redis.call('LPOP', KEYS[1])
end
if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
local expires = string.format('%016.0f', now + tonumber(ARGV[2]))
local length = redis.call('RPUSH', KEYS[1], expires .. ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if length == 1 then redis.call(ARGV[6], ARGV[4], ARGV[5]) end
return 1
"""
)
POP = Script(
    _NOW
    + """
-- KEYS: list
local expired = 0
while true do
  local entry = redis.call('LPOP', KEYS[1])
  if not entry then return {expired, false} end
  if tonumber(string.sub(entry, 1, 16)) > now then return {expired, entry} end
  expired = expired + 1
end
"""
)
RETURN = Script(
    _NOW
    + """
-- KEYS: list. ARGV: entry, channel, doorbell, command
local left = tonumber(string.sub(ARGV[1], 1, 16)) - now
if left <= 0 then return 0 end
local length = redis.call('LPUSH', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < left then
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', left))
end
if length == 1 then redis.call(ARGV[4], ARGV[2], ARGV[3]) end
return 1
"""
)


class QueueCalls:
    """The methods of `SupportsQueue`. A broker inherits them and sets the attributes below."""

    url: BrokerURL
    _name: Callable[[str], bytes]
    _scripts: ScriptRunner

    async def _publish_command(self) -> bytes:
        """PUBLISH or SPUBLISH. Raises NotSent if it cannot be learned."""
        return PLAIN.publish

    async def queue_push(
        self,
        queue: str,
        payload: bytes,
        *,
        capacity: int,
        expiry_ms: int,
        doorbell: bytes,
        once: bytes = b"",
    ) -> bool:
        """See `SupportsQueue.queue_push`."""
        name = self._name(queue)
        keys = [name + b":q"]
        if once:
            keys.append(name + b":q:" + once)
        limits = (b"%d" % capacity, b"%d" % expiry_ms)
        reply = await self._run(queue, PUSH, keys, [*limits, payload, name, doorbell])
        return bool(reply)

    async def queue_pop(self, queue: str) -> tuple[QueueEntry | None, int]:
        """See `SupportsQueue.queue_pop`."""
        expired, entry = await self._run(queue, POP, [self._name(queue) + b":q"])
        if entry is None:
            return None, expired
        return QueueEntry(entry[DIGITS:], int(entry[:DIGITS])), expired

    async def queue_return(self, queue: str, entry: QueueEntry, *, doorbell: bytes) -> None:
        """See `SupportsQueue.queue_return`."""
        name = self._name(queue)
        packed = b"%0*d" % (DIGITS, entry.expires_ms) + entry.payload
        await self._run(queue, RETURN, [name + b":q"], [packed, name, doorbell])

    async def queue_clear(self, prefix: str) -> None:
        """See `SupportsQueue.queue_clear`."""
        start = server_name(self.url.options.prefix.encode(), prefix)[:-1]
        pattern = re.sub(rb"([*?\[\]\\^])", rb"\\\1", start) + b"*}:q*"
        await self._call(
            prefix, self._scripts.each_server(partial(scan_and_unlink, pattern=pattern))
        )

    async def _run(
        self, queue: str, script: Script, keys: Sequence[bytes], args: Sequence[bytes] = ()
    ) -> Any:
        async def run() -> Any:
            command = [await self._publish_command()] if args else []
            return await self._scripts.run(script, keys, [*args, *command])

        return await self._call(queue, run())

    async def _call(self, queue: str, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except NotSent as exc:
            raise QueueError(self.url, str(exc), queue=queue) from exc.__cause__
        except OutcomeUnknown as exc:
            raise QueueError(self.url, str(exc), queue=queue, unknown=True) from exc.__cause__
        except ReplyError as exc:
            error = QueueError(self.url, f"the server refused it: {exc}", queue=queue)
        raise error
