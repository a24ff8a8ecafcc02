"""The Lua scripts that keep and read the history of a channel, and their arguments and replies.

The history is one hash, because a cluster serves scripts with a single key while a slot moves. The
hash has the fields `e` (epoch), `o` (newest offset), `t` (newest tag), `l` (lowest offset) and one
field for each offset. docs/wire-format.md describes them.

The scripts use only what Lua 5.1 and later, Redis, Valkey and fakeredis have in common.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ...history import (
    READ_BYTES,
    HistoryReply,
    HistoryRule,
    HistoryStatus,
    Position,
    Start,
    position_of,
    with_field,
)
from .scripts import Script

__all__ = ["KEEP", "READ", "KeptMessage", "history_key", "history_reply", "read_command"]

KEEP = Script(
    r"""
-- KEYS: hash. ARGV: head, payload, messages, milliseconds, new epoch, verb, name, largest payload.
-- The length in the head includes the field. Returns {offset, field}, or {0, ''} if it is unkept.
local head, payload = ARGV[1], ARGV[2]
local h = redis.call('HMGET', KEYS[1], 'e', 'o', 't', 'l')
local e, o, t, l = h[1], tonumber(h[2] or 0), h[3], tonumber(h[4] or 1)
if not e then e, o, t, l = ARGV[5], 0, string.rep('\0', 16), 1 end
o = o + 1
local n = string.format('%.0f', o)
local field = '\2\0\40' .. e .. string.format('%016.0f', o) .. t
local message = head .. field .. payload
local kept = message
if #payload > tonumber(ARGV[8]) then kept = '' end
local lowest = math.max(l, o - tonumber(ARGV[3]) + 1)
local w = redis.pcall('HSET', KEYS[1], 'e', e, 'o', n, 't', string.sub(head, 9, 24),
  'l', string.format('%.0f', lowest), n, kept)
if type(w) == 'table' and w.err then
  if not string.find(w.err, '^%-?OOM') then return w end
  redis.call('DEL', KEYS[1])
  local size = string.byte(head, 7) * 256 + string.byte(head, 8) - 43
  local length = string.char(math.floor(size / 256), size % 256)
  redis.call(ARGV[6], ARGV[7], string.sub(head, 1, 6) .. length .. string.sub(head, 9) .. payload)
  return {0, ''}
end
for i = l, lowest - 1 do redis.call('HDEL', KEYS[1], string.format('%.0f', i)) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call(ARGV[6], ARGV[7], message)
return {o, field}
"""
)

READ = Script(
    r"""
-- KEYS: hash. ARGV: epoch known ('' for none), offset known, or -n for the last n, tag known,
-- most messages, most bytes, milliseconds, new epoch.
-- Returns {epoch, offset, tag, master_replid, master_replid2, status, messages}.
local line, former = '', ''
local info = redis.pcall('INFO', 'replication')
if type(info) == 'string' then
  line = string.match(info, 'master_replid:(%x+)') or ''
  former = string.match(info, 'master_replid2:(%x+)') or ''
end
local function swallowed(w)
  return string.find(w.err, '^%-?OOM') or string.find(w.err, '^%-?NOREPLICAS')
    or string.find(w.err, '^%-?MISCONF')
end
local h = redis.call('HMGET', KEYS[1], 'e', 'o', 't', 'l')
local e, o, t, l = h[1], h[2], h[3], h[4]
if not e then
  e, o, t, l = ARGV[7], '0', string.rep('\0', 16), '1'
  local w = redis.pcall('HSET', KEYS[1], 'e', e, 'o', o, 't', t, 'l', l)
  if type(w) == 'table' and w.err then
    if not swallowed(w) then return w end
    return {'', '0', t, line, former, 0, {}}
  end
end
local w = redis.pcall('PEXPIRE', KEYS[1], ARGV[6])
if type(w) == 'table' and w.err and not swallowed(w) then return w end
local known, top, lowest = tonumber(ARGV[2]), tonumber(o), tonumber(l)
local since = ARGV[1] ~= ''
if since then
  if ARGV[1] ~= e or known > top or known + 1 < lowest then
    return {e, o, t, line, former, 0, {}}
  end
  if known == top then return {e, o, t, line, former, ARGV[3] == t and 1 or 0, {}} end
else
  known = math.max(lowest - 1, top + known)
end
local most, bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local out, size, status = {}, 0, 1
for k = known + 1, top, 50 do
  local f = {}
  for j = k, math.min(k + 49, top) do f[#f + 1] = string.format('%.0f', j) end
  local v = redis.call('HMGET', KEYS[1], (unpack or table.unpack)(f))
  for j = 1, #f do
    if not v[j] or v[j] == '' then
      if since then return {e, o, t, line, former, 0, {}} end
      out, size, status = {}, 0, 0
    else
      size = size + #v[j]
      if #out > 0 and (size > bytes or #out >= most) then
        return {e, o, t, line, former, 2, out}
      end
      out[#out + 1] = v[j]
    end
  end
end
return {e, o, t, line, former, status, out}
"""
)

_ID_DIGITS = 16


def history_key(name: bytes) -> bytes:
    """The key of the history of a channel, in the slot of the channel's name."""
    return name + b":h"


class KeptMessage(NamedTuple):
    """A message to be kept.

    Attributes:
        header: its envelope, without the position field.
    """

    name: bytes
    header: bytes
    payload: bytes
    rule: HistoryRule

    def command(self, publish: bytes) -> tuple[bytes, ...]:
        """The command that keeps and publishes it with the verb `publish`."""
        rule = self.rule
        return KEEP.command(
            history_key(self.name),
            with_field(self.header),
            self.payload,
            b"%d" % rule.messages,
            b"%d" % rule.milliseconds,
            os.urandom(8),
            publish,
            self.name,
            b"%d" % rule.message_bytes,
        )

    def published(self, reply: Any) -> bytes | None:
        """The message as published; None if it was published and not kept.

        Raises:
            ValueError: the reply is malformed.
        """
        if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], bytes):
            raise ValueError("the reply of the server is malformed")
        offset, field = reply
        return with_field(self.header) + field + self.payload if offset else None


def read_command(
    name: bytes, start: Start, rule: HistoryRule, messages: int, max_bytes: int = READ_BYTES
) -> tuple[bytes, ...]:
    """The command that reads the history of a channel.

    Args:
        messages, max_bytes: see `SupportsHistory.read_history`.
    """
    epoch, offset, tag = b"", -(start or 0) if not isinstance(start, Position) else 0, b""
    if isinstance(start, Position):
        epoch, offset, tag = start.epoch, start.offset, start.tag
    return READ.command(
        history_key(name),
        epoch,
        b"%d" % offset,
        tag,
        b"%d" % messages,
        b"%d" % max_bytes,
        b"%d" % rule.milliseconds,
        os.urandom(8),
    )


def history_reply(reply: Any) -> HistoryReply:
    """The reply of the read script.

    Raises:
        ValueError: it is malformed.
    """
    found = _history_reply(reply)
    if found is None:
        raise ValueError("the reply of the server is malformed")
    return found


def _history_reply(reply: Any) -> HistoryReply | None:
    try:
        epoch, offset, tag, line, former, status, messages = reply
        history_id, previous = _history_id(line), _history_id(former)
        status = HistoryStatus(status)
        newest = Position(epoch, int(offset), tag, history_id) if epoch else None
        found = tuple(messages)
        position = position_of(found[-1], history_id) if status is HistoryStatus.CUT else newest
    except (TypeError, ValueError, IndexError):
        return None
    if any(not isinstance(message, bytes) for message in found):
        return None
    return HistoryReply(status, position, found, previous)


def _history_id(text: bytes) -> bytes:
    """The history id in a `master_replid`; empty if the server hides it."""
    return bytes.fromhex(text[:_ID_DIGITS].decode()) if len(text) >= _ID_DIGITS else b""
