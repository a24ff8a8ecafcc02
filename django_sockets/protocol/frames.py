"""Frames of the protocol: those of a client are read, those of the server are built."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import msgspec

from ..codec import encode_json
from ..decoding import decode_json
from .problems import BrokenFrame, InvalidFrame, Problem

__all__ = [
    "MESSAGE",
    "PING",
    "PING_FRAME",
    "PONG",
    "READY_FRAME",
    "RENEW",
    "SUBSCRIBE",
    "UNKNOWN",
    "UNSUBSCRIBE",
    "ClientFrame",
    "bye_frame",
    "error_frame",
    "gap_frame",
    "hello_frame",
    "ok_frame",
    "pong_frame",
    "read_frame",
    "unsubscribed_frame",
]

MESSAGE, SUBSCRIBE, UNSUBSCRIBE, RENEW, PING, PONG = KINDS = (
    "message",
    "subscribe",
    "unsubscribe",
    "renew",
    "ping",
    "pong",
)
UNKNOWN = ""
"""The kind of a frame with no key of this version."""

_MAX_ID = 2**53 - 1
_ID = re.compile(rb"0|[1-9][0-9]{0,15}")
_ABSENT = msgspec.Raw(b"")


class ClientFrame(NamedTuple):
    """A frame of a client.

    Attributes:
        kind: one of the constants of this module.
        request_id: its `id`; None without one.
        body: the JSON text of the value of the key that names the kind.
    """

    kind: str
    request_id: int | None
    body: str

    @property
    def number(self) -> int:
        """The number of a ping."""
        return int(self.body)


class _Frame(msgspec.Struct):
    """The parts of a frame, not decoded. Other keys are checked to be JSON and left out."""

    id: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    subscribe: msgspec.Raw = _ABSENT
    unsubscribe: msgspec.Raw = _ABSENT
    renew: msgspec.Raw = _ABSENT
    ping: msgspec.Raw = _ABSENT
    pong: msgspec.Raw = _ABSENT


_decode = msgspec.json.Decoder(_Frame).decode


def read_frame(text: str) -> ClientFrame:
    """Read a text frame of a client.

    Raises:
        BrokenFrame: it is not a JSON object.
        InvalidFrame: a key of the protocol has a wrong value, or there are several.
    """
    try:
        parts = _decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        # msgspec refuses lone surrogates, which JavaScript sends for a text cut inside a character.
        parts = _read_slowly(text)
    request_id = _read_id(parts.id, "id") if parts.id else None
    kinds = [kind for kind in KINDS if getattr(parts, kind)]
    if len(kinds) > 1:
        raise InvalidFrame(f"A frame has one of the keys {kinds}, not several.", request_id)
    if not kinds:
        return ClientFrame(UNKNOWN, request_id, "")
    kind = kinds[0]
    body: msgspec.Raw = getattr(parts, kind)
    if kind in (PING, PONG):
        _read_id(body, kind)
        request_id = None
    elif request_id is None and kind != MESSAGE:
        raise InvalidFrame(f"{kind} needs an id.")
    return ClientFrame(kind, request_id, bytes(body).decode())


def _read_slowly(text: str) -> _Frame:
    try:
        data = decode_json(text)
    except ValueError as exc:
        raise BrokenFrame from exc
    if not isinstance(data, dict):
        raise BrokenFrame
    parts = ("id", *KINDS)
    try:
        return _Frame(**{key: msgspec.Raw(json.dumps(data[key])) for key in parts if key in data})
    except RecursionError as exc:
        raise BrokenFrame from exc


def _read_id(raw: msgspec.Raw, key: str) -> int:
    text = bytes(raw)
    if _ID.fullmatch(text) is None or int(text) > _MAX_ID:
        raise InvalidFrame(f"{key} must be an integer from 0 to {_MAX_ID}.")
    return int(text)


# Frames of the server. They are JSON text in UTF-8, without a websocket header.

READY_FRAME = b'{"ready":{}}'
PING_FRAME = b'{"ping":1}'


def hello_frame(
    version: int,
    session: str,
    *,
    ping_seconds: int,
    pong: bool,
    message_bytes: int,
    requests: int,
    subscriptions: int,
) -> bytes:
    """The first frame to a client."""
    limits = {
        "message_bytes": int(min(message_bytes, _MAX_ID)),  # It may be infinite.
        "requests": requests,
        "subscriptions": int(min(subscriptions, _MAX_ID)),
    }
    hello = {"version": version, "session": session, "ping": ping_seconds, "pong": pong}
    return _frame({"hello": {**hello, "limits": limits}})


def pong_frame(number: int) -> bytes:
    return b'{"pong":%d}' % number


def ok_frame(request_id: int, result: Any) -> bytes:
    """The answer to a frame with an id.

    Raises:
        EncodeError: the result has no JSON form.
    """
    return b'{"id":%d,"ok":%s}' % (request_id, encode_json(result).encode())


def error_frame(problem: Problem, request_id: int | None = None) -> bytes:
    """The answer to a frame that failed, or an error of the connection without an id."""
    error = {"error": problem.as_json()}
    return _frame(error if request_id is None else {"id": request_id, **error})


def gap_frame(channels: tuple[str, ...], reason: str) -> bytes:
    return _frame({"gap": channels, "reason": reason})


def unsubscribed_frame(channel: str, code: str, again: bool) -> bytes:
    return _frame({"unsubscribed": channel, "code": code, "again": again})


def bye_frame(code: int, again: bool, after_seconds: tuple[float, float]) -> bytes:
    """The last frame to a client."""
    bye: dict[str, Any] = {"code": code, "again": again}
    if again:
        bye["after"] = after_seconds
    return _frame({"bye": bye})


def _frame(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
