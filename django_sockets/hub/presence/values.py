"""The key and the info of a member, and the bytes of an entry that the broker keeps."""

from __future__ import annotations

import re

from ...codec import encode_json
from ...errors import ConfigurationError, PayloadTooLarge

__all__ = ["NAME_BYTES", "check_name", "key_of", "pack_value", "read_value"]

NAME_BYTES = 255
"""The longest key of a member, and the longest name of an entry, in UTF-8."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SEPARATOR = b"\n"


def check_name(name: object, what: str) -> str:
    """Return the name of an entry or the key of a member if it is valid.

    Args:
        what: "key" or "entry".

    Raises:
        ConfigurationError: it is not valid. The message says why and what to do.
    """
    if not isinstance(name, str):
        kind = type(name).__name__
        raise ConfigurationError(f"presence {what} is {kind}, not str: use str(...)")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"presence {what} is not valid text: use UTF-8") from None
    if not 1 <= size <= NAME_BYTES:
        raise ConfigurationError(
            f"presence {what} has {size} bytes: use 1 to {NAME_BYTES} bytes of UTF-8"
        )
    if _CONTROL.search(name):
        raise ConfigurationError(f"presence {what} contains control characters: remove them")
    return name


def pack_value(key: str, info: object, max_info_bytes: int) -> bytes:
    """The value of an entry.

    Args:
        key: a valid name.
        info: anything with a JSON form.

    Raises:
        EncodeError: the info has no JSON form.
        PayloadTooLarge: it is over the limit.
    """
    text = encode_json(info).encode()
    if len(text) > max_info_bytes:
        raise PayloadTooLarge(
            len(text), max_info_bytes, what="presence info", option="max_presence_bytes"
        )
    return key.encode() + _SEPARATOR + text


def key_of(value: bytes) -> str:
    """The key in a value that this process has made."""
    return value.partition(_SEPARATOR)[0].decode()


def read_value(value: bytes) -> tuple[str, bytes] | None:
    """The key and the JSON text of the info; None if another program wrote the value."""
    key, separator, info = value.partition(_SEPARATOR)
    if not separator or not key:
        return None
    try:
        return key.decode(), info
    except UnicodeDecodeError:
        return None
