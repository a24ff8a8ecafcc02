"""Application data <-> the payload of a broadcast: JSON text, or bytes.

A broadcast is encoded once, by its publisher. Every socket sends the same bytes unchanged.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from typing import Any

import msgspec

from .decoding import decode_json
from .errors import EncodeError
from .optional_django import lazy_text

__all__ = ["decode_json", "encode", "encode_json", "json_of", "send_event"]


def encode_json(data: object) -> str:
    """Encode data as JSON text with the separators of `json.dumps`. Non-ASCII text is not escaped.

    In addition to the types of `json.dumps` it encodes datetimes, dates, times and timedeltas (ISO
    8601), UUID and Decimal (as text), enums and Django's lazy strings. Keys may have these types,
    too. Dataclasses, attrs classes and msgspec Structs become objects with their fields as keys. A
    Struct is encoded as msgspec does: with its tag and renamed fields, and without UNSET fields.

    Raises:
        EncodeError: the data has no JSON form (another type, NaN, Infinity, or a cycle).
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
            # A lone surrogate cannot be encoded as UTF-8, but JSON can escape it.
            text = json.dumps(json.loads(text))
    return text


def encode(data: object) -> tuple[bytes, bool]:
    """Encode data as the payload of a broadcast.

    Returns:
        The payload and `is_text`. It is False for bytes-like data, which is a binary frame, and
        True for any other data, which becomes JSON text.

    Raises:
        EncodeError: the data has no JSON form.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), False
    return encode_json(data).encode(), True


def json_of(text: bytes) -> bytes:
    """A text that an application has encoded itself, as JSON: unchanged if it is JSON."""
    try:
        decode_json(text)
    except ValueError:
        return json.dumps(text.decode(), ensure_ascii=False).encode()
    return text


def send_event(encoded: Any, is_bytes: bool = False) -> dict[str, Any]:
    """The ASGI event for the result of an encoder: a text frame for `str`, else a binary frame."""
    if is_bytes and isinstance(encoded, str):
        encoded = encoded.encode()
    if isinstance(encoded, str):
        return {"type": "websocket.send", "text": encoded}
    return {"type": "websocket.send", "bytes": bytes(encoded)}


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return _duration(value)
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    fields = _fields(value)
    if fields is not None:
        return fields
    text = lazy_text(value)
    if text is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return text


def _fields(value: Any) -> dict[str, Any] | list[Any] | None:
    """The fields of a dataclass, an attrs object or a Struct; None for other values."""
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct):
        return _of_struct(value)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    elif hasattr(type(value), "__attrs_attrs__"):
        names = [attribute.name for attribute in type(value).__attrs_attrs__]
    else:
        return None
    return {name: getattr(value, name) for name in names}


def _of_struct(value: msgspec.Struct) -> dict[str, Any] | list[Any]:
    # `msgspec.to_builtins` would also convert the field values, and it refuses SafeString.
    config = value.__struct_config__
    fields = msgspec.structs.fields(value)
    tagged = config.tag is not None
    if config.array_like:
        values = [getattr(value, field.name) for field in fields]
        return [config.tag, *values] if tagged else values
    found: dict[str, Any] = {str(config.tag_field): config.tag} if tagged else {}
    for field in fields:
        one = getattr(value, field.name)
        if one is not msgspec.UNSET and not (config.omit_defaults and _is_default(field, one)):
            found[field.encode_name] = one
    return found


def _is_default(field: msgspec.structs.FieldInfo, value: Any) -> bool:
    """True if `omit_defaults` omits the field: its default, or an empty container of its type."""
    if field.default is not msgspec.NODEFAULT:
        return value is field.default  # msgspec compares by identity, too.
    return field.default_factory is type(value) and not value


def _duration(value: datetime.timedelta) -> str:
    """ISO 8601 as in Django's `DjangoJSONEncoder`: P1DT02H03M04.000005S."""
    sign, value = ("-", -value) if value < datetime.timedelta(0) else ("", value)
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06d}" if value.microseconds else ""
    return f"{sign}P{value.days}DT{hours:02d}H{minutes:02d}M{seconds:02d}{fraction}S"


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)


def _with_text_keys(value: Any) -> Any:
    """A copy in which keys that `json` refuses are converted."""
    if isinstance(value, dict):
        return {_key(key): _with_text_keys(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_text_keys(item) for item in value]
    fields = _fields(value)
    return value if fields is None else _with_text_keys(fields)


def _key(key: Any) -> Any:
    return key if isinstance(key, (str, int, float, bool, type(None))) else _plain(key)
