"""The Lua scripts of presence, and their arguments and replies.

The entries of a channel are one hash, `<server name>:p`, with the fields `:e` (epoch), `:v`
(version) and one field for each entry. Changes are published on the name of the hash, as one
message for each call (`presence.parse_diff`). The leases are one sorted set, `<prefix>:{leases}`,
with the time at which each lease ends, and with the time of the last call as `:last`.
docs/wire-format.md describes both.

The scripts use only what Lua 5.1 and later, Redis, Valkey and fakeredis have in common.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from ...presence import (
    ABSENT,
    ALL_ENDED,
    EMPTY_SECONDS,
    ENDED_LEASES,
    KEEP_SECONDS,
    LeaseAction,
    LeaseReply,
    LeaseState,
    PresenceChange,
    PresenceDiff,
    PresenceSnapshot,
    bytes_of,
    pack_diff,
    text_of,
)
from .parser import pairs
from .scripts import Script

__all__ = [
    "CHANGE",
    "LEASE",
    "change_arguments",
    "change_of",
    "lease_arguments",
    "lease_of",
    "published_diff",
    "snapshot_of",
]

MALFORMED = "the reply of the server is malformed"

CHANGE = Script(
    r"""
-- KEYS: hash. ARGV: verb, name, milliseconds to keep entries, milliseconds to keep an empty hash,
-- new epoch, most entries, then pairs of field and value ('' removes the entry).
-- Returns {epoch, version, numbers of the changed pairs, numbers of the refused pairs}.
local key, most = KEYS[1], tonumber(ARGV[6])
local pairs_given = (#ARGV - 6) / 2
local h = redis.call('HMGET', key, ':e', ':v')
local epoch, version = h[1], tonumber(h[2] or 0)
local before = {}
for first = 1, pairs_given, 500 do
  local fields = {}
  for n = first, math.min(first + 499, pairs_given) do fields[#fields + 1] = ARGV[5 + 2 * n] end
  local values = redis.call('HMGET', key, (unpack or table.unpack)(fields))
  for i = 1, #fields do before[first + i - 1] = values[i] end
end
local changed, refused, diff = {}, {}, {}
local function note(n, number)
  local field, value = ARGV[5 + 2 * n], ARGV[6 + 2 * n]
  changed[#changed + 1] = number
  diff[#diff + 1] = string.format('%08.0f', #field) .. field
    .. string.format('%08.0f', #value) .. value
end
local number = 0
for n = 1, pairs_given do
  number = number + 1
  if ARGV[6 + 2 * n] == '' and before[n] then
    redis.call('HDEL', key, ARGV[5 + 2 * n])
    note(n, number)
  end
end
local size = redis.call('HLEN', key)
if epoch then size = size - 2 end
number = 0
for n = 1, pairs_given do
  number = number + 1
  local value = ARGV[6 + 2 * n]
  if value ~= '' and value ~= before[n] then
    if not before[n] and size >= most then
      refused[#refused + 1] = number
    else
      if not epoch then
        epoch = ARGV[5]
        redis.call('HSET', key, ':e', epoch, ':v', '0')
      end
      redis.call('HSET', key, ARGV[5 + 2 * n], value)
      if not before[n] then size = size + 1 end
      note(n, number)
    end
  end
end
if not epoch then return {'', '0', changed, refused} end
if #changed > 0 then
  version = version + 1
  redis.call('HSET', key, ':v', string.format('%.0f', version))
end
redis.call('PEXPIRE', key, size > 0 and ARGV[3] or ARGV[4])
if #changed > 0 then
  redis.call(ARGV[1], ARGV[2],
    'dp1' .. epoch .. string.format('%016.0f', version) .. table.concat(diff))
end
return {epoch, string.format('%.0f', version), changed, refused}
"""
)

LEASE = Script(
    rf"""
-- KEYS: sorted set. ARGV: process, action, lease in milliseconds, grace in milliseconds, then
-- processes to adopt. A lease has ended if its time is not above the server's clock.
-- Of many ended leases, the oldest are forgotten (`presence.ENDED_LEASES`, `presence.ALL_ENDED`).
-- Returns {{state, clock, ended processes, time of the next end or ''}}.
local remembered, at_most = {ENDED_LEASES}, {ALL_ENDED}
local key, process, action, lease = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local function text(ms) return string.format('%.0f', ms) end
-- A server whose memory is full refuses ZADD unless the script has written before.
redis.call('PEXPIRE', key, 86400000)
local last = tonumber(redis.call('ZSCORE', key, ':last') or now)
if now < last and last - now < 1000 then now = last end
if now < last or now - last > lease / 2 then
  -- Nobody could renew for long, or the clock was moved.
  local ended = redis.call('ZRANGEBYSCORE', key, '-inf', text(last))
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. text(last), '+inf')) do
    local whole = now + lease
    if now >= last then whole = math.max(whole, tonumber(redis.call('ZSCORE', key, id))) end
    redis.call('ZADD', key, text(whole), id)
  end
  if now < last then
    for _, id in ipairs(ended) do redis.call('ZADD', key, text(now), id) end
  end
end
redis.call('ZADD', key, text(now), ':last')
redis.call('PEXPIRE', key, 86400000)
local ends = tonumber(redis.call('ZSCORE', key, process) or -1)
local state = 'unknown'
if ends > now then state = 'ok' elseif ends >= 0 then state = 'ended' end
if action == 'new' and state == 'unknown' then state = 'ok' end
if action == 'end' and state ~= 'ended' then
  redis.call('ZADD', key, text(now + tonumber(ARGV[4])), process)
  state = tonumber(ARGV[4]) > 0 and 'ok' or 'ended'
elseif state == 'ok' and (action == 'new' or action == 'renew') then
  redis.call('ZADD', key, text(now + lease), process)
end
for i = 5, #ARGV do redis.call('ZADD', key, 'NX', text(now + lease), ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. text(now - 3600000))
local ended, dead = {{}}, {{}}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', text(now))) do
  if id ~= ':last' then ended[#ended + 1] = id end
end
local surplus = #ended - at_most
if #ended > remembered then
  local old = redis.call('ZCOUNT', key, '-inf', '(' .. text(now - 2 * lease))
  surplus = math.max(surplus, math.min(#ended - remembered, old))
end
for n, id in ipairs(ended) do
  if n <= surplus then redis.call('ZREM', key, id) else dead[#dead + 1] = id end
end
local soon = redis.call('ZRANGEBYSCORE', key, '(' .. text(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {{state, text(now), dead, soon[2] or ''}}
"""
)


def change_arguments(
    verb: bytes, name: bytes, changes: Mapping[str, bytes], max_entries: int
) -> list[bytes]:
    """The arguments of `CHANGE` for the hash `name`."""
    arguments = [
        verb,
        name,
        b"%d" % (KEEP_SECONDS * 1000),
        b"%d" % (EMPTY_SECONDS * 1000),
        os.urandom(8),
        b"%d" % max_entries,
    ]
    for field, value in changes.items():
        arguments += (bytes_of(field), value)
    return arguments


def change_of(reply: Any, changes: Mapping[str, bytes]) -> tuple[PresenceChange, list[str]]:
    """The reply of `CHANGE`, and the changed fields.

    Raises:
        ValueError: the reply is malformed.
    """
    fields = list(changes)
    try:
        epoch, version, changed, refused = reply
        names = [fields[number - 1] for number in changed]
        change = PresenceChange(
            bytes(epoch), int(version), len(names), tuple(fields[n - 1] for n in refused)
        )
    except (TypeError, ValueError, IndexError):
        raise ValueError(MALFORMED) from None
    return change, names


def published_diff(
    change: PresenceChange, names: Collection[str], changes: Mapping[str, bytes]
) -> bytes:
    """The message that `CHANGE` has published."""
    made = {name: changes[name] for name in names}
    return pack_diff(PresenceDiff(change.epoch, change.version, made))


def snapshot_of(reply: Any) -> PresenceSnapshot:
    """The reply to HGETALL.

    Raises:
        ValueError: it is malformed, or the hash is no presence.
    """
    is_flat = isinstance(reply, list) and len(reply) % 2 == 0  # The form of RESP2.
    if not is_flat and not isinstance(reply, dict):
        raise ValueError(MALFORMED)
    fields = dict(pairs(reply))
    if not fields:
        return ABSENT
    if not all(isinstance(part, bytes) for pair in fields.items() for part in pair):
        raise ValueError(MALFORMED)
    try:
        epoch, version = fields.pop(b":e"), int(fields.pop(b":v"))
    except (KeyError, ValueError):
        raise ValueError("the hash has no epoch and version") from None
    return PresenceSnapshot(
        epoch, version, {text_of(field): value for field, value in fields.items()}
    )


def lease_arguments(
    process: str,
    action: LeaseAction,
    lease_seconds: float,
    grace_seconds: float,
    adopt: Collection[str],
) -> list[bytes]:
    """The arguments of `LEASE`."""
    return [
        process.encode(),
        action.value.encode(),
        b"%d" % round(lease_seconds * 1000),
        b"%d" % round(grace_seconds * 1000),
        *(one.encode() for one in adopt),
    ]


def lease_of(reply: Any) -> LeaseReply:
    """The reply of `LEASE`.

    Raises:
        ValueError: it is malformed.
    """
    try:
        state, now, dead, soonest = reply
        return LeaseReply(
            LeaseState(state.decode()),
            int(now),
            frozenset(one.decode() for one in dead),
            int(float(soonest)) if soonest else None,
        )
    except (AttributeError, TypeError, ValueError):
        raise ValueError(MALFORMED) from None
