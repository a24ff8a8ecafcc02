"""Data <-> the websocket's own text, and one received broadcast with its decoded forms.

A broadcast is encoded once, by its publisher. The bytes travel unchanged into every socket's
`send`; they are decoded only for a class that asks for the data, once per process and message.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from .conf import lazy_text
from .decoding import decode_json
from .errors import EncodeError

__all__ = ["Delivery", "decode_json", "encode", "encode_json", "send_event"]


def encode_json(data: object) -> str:
    """Encode data as JSON text with the separators of `json.dumps`; non-ASCII is not escaped.

    Besides what `json.dumps` takes: datetimes, dates and times (ISO 8601), UUID, Decimal (as text),
    enums, dataclasses and Django's lazy strings; also as keys, dataclasses excepted.

    Raises:
        EncodeError: the data has no JSON form (another type, NaN, Infinity, a cycle).
    """
    try:
        try:
            text = _ENCODER.encode(data)
        except TypeError:
            text = _ENCODER.encode(_with_text_keys(data))
    except (TypeError, ValueError, RecursionError) as exc:
        problem = "nested too deeply" if isinstance(exc, RecursionError) else exc
        raise EncodeError(
            f"{type(data).__name__} cannot be sent as JSON: {problem}. "
            "Send dicts, lists, text, numbers, booleans or None; or bytes for a binary frame"
        ) from exc
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            # A lone surrogate has no UTF-8; JSON can still carry it escaped.
            text = json.dumps(json.loads(text))
    return text


def encode(data: object) -> tuple[bytes, bool]:
    """Encode data for the wire.

    Returns:
        The payload and whether it is text: bytes-like data is a binary frame, all else JSON text.

    Raises:
        EncodeError: the data has no JSON form.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), False
    return encode_json(data).encode(), True


class Delivery(msgspec.Struct, gc=False, eq=False):
    """One broadcast as received by this process, shared by all its local subscribers.

    A `Struct` is made in a third of the time of a class with `__init__`.

    Attributes:
        channel: where it was published.
        payload: the bytes that were published.
        is_text: whether they are JSON text rather than a binary frame.
        origin: id of the socket that must not get it back, or None.
        made: the event, once it is made.
    """

    channel: str
    payload: bytes
    is_text: bool
    origin: bytes | None = None
    made: dict[str, Any] | None = None
    _data: Any = msgspec.UNSET
    _foreign: dict[object, dict[str, Any]] | None = None

    def event(self) -> dict[str, Any]:
        """The ASGI `websocket.send` event; the same object for every socket, so never change it."""
        if self.made is None:
            if self.is_text:
                self.made = {"type": "websocket.send", "text": self.payload.decode()}
            else:
                self.made = {"type": "websocket.send", "bytes": self.payload}
        return self.made

    def data(self) -> Any:
        """The decoded data; one object for every socket of the process, so never change it."""
        if self._data is msgspec.UNSET:
            self._data = decode_json(self.payload) if self.is_text else self.payload
        return self._data

    def event_by(self, encoder: Callable[[Any], Any], is_bytes: bool) -> dict[str, Any]:
        """The event as a class's own encoder makes it; made once per encoder."""
        if self._foreign is None:
            self._foreign = {}
        key = (encoder, is_bytes)
        event = self._foreign.get(key)
        if event is None:
            event = self._foreign[key] = send_event(encoder(self.data()), is_bytes)
        return event


def send_event(encoded: Any, is_bytes: bool = False) -> dict[str, Any]:
    """The ASGI event for what an encoder returned: text for `str`, a binary frame for bytes."""
    if is_bytes and isinstance(encoded, str):
        encoded = encoded.encode()
    if isinstance(encoded, str):
        return {"type": "websocket.send", "text": encoded}
    return {"type": "websocket.send", "bytes": bytes(encoded)}


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    text = lazy_text(value)
    if text is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return text


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)


def _with_text_keys(value: Any) -> Any:
    """A copy in which keys that `json` refuses have their plain form."""
    if isinstance(value, dict):
        return {_key(key): _with_text_keys(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _with_text_keys(_plain(value))
    return value


def _key(key: Any) -> Any:
    return key if isinstance(key, (str, int, float, bool, type(None))) else _plain(key)
