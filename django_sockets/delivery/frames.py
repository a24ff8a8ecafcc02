"""Builds the websocket frames that a server sends, byte for byte as `websockets` builds them.

A frame that is built once can be written to any number of connections, because a server does not
mask its frames (RFC 6455, section 5.1). A compressed frame can be shared, too, if the connections
negotiated permessage-deflate without context takeover and a window of at least the same size
(RFC 7692, section 7). The functions keep no state and may be called from any thread.
"""

from __future__ import annotations

import struct
import zlib

__all__ = [
    "BINARY",
    "COMPRESS_FROM_BYTES",
    "TEXT",
    "binary_frame",
    "deflate",
    "frame",
    "text_frame",
]

TEXT = 1
BINARY = 2
COMPRESS_FROM_BYTES = 512
"""A shorter payload is not worth compressing: without context it saves little."""

LEVEL = 6
MEMORY_LEVEL = 5
"""The value that uvicorn uses. It changes the memory of a compressor, but hardly the result."""

_FINAL = 0x80
_COMPRESSED = 0x40
_MAX_SHORT = 125
_MAX_MEDIUM = 0xFFFF
_SYNC_MARKER_BYTES = 4

_medium = struct.Struct("!BBH").pack
_long = struct.Struct("!BBQ").pack
_TEXT_HEADERS = tuple(bytes((_FINAL | TEXT, size)) for size in range(_MAX_SHORT + 1))
_BINARY_HEADERS = tuple(bytes((_FINAL | BINARY, size)) for size in range(_MAX_SHORT + 1))


def text_frame(payload: bytes) -> bytes:
    """An uncompressed text frame: a whole message.

    Args:
        payload: UTF-8; it is not checked.
    """
    size = len(payload)
    if size <= _MAX_SHORT:
        return _TEXT_HEADERS[size] + payload
    if size <= _MAX_MEDIUM:
        return _medium(_FINAL | TEXT, 126, size) + payload
    return _long(_FINAL | TEXT, 127, size) + payload


def binary_frame(payload: bytes) -> bytes:
    """An uncompressed binary frame: a whole message."""
    size = len(payload)
    if size <= _MAX_SHORT:
        return _BINARY_HEADERS[size] + payload
    return _long_frame(_FINAL | BINARY, payload, size)


def frame(opcode: int, payload: bytes, *, compressed: bool = False) -> bytes:
    """A final frame, which is a whole message if the opcode is TEXT or BINARY.

    Args:
        opcode: 0 to 15, as RFC 6455 assigns them.
        payload: any size up to 2**63 - 1 bytes. If `compressed` is set, the result of `deflate`.
        compressed: sets the bit RSV1, which marks a compressed message.
    """
    first = _FINAL | opcode | (_COMPRESSED if compressed else 0)
    size = len(payload)
    if size <= _MAX_SHORT:
        return bytes((first, size)) + payload
    return _long_frame(first, payload, size)


def _long_frame(first: int, payload: bytes, size: int) -> bytes:
    if size <= _MAX_MEDIUM:
        return _medium(first, 126, size) + payload
    return _long(first, 127, size) + payload


def deflate(payload: bytes, window_bits: int) -> bytes:
    """The payload of a compressed frame, made by a compressor of its own (no context).

    It releases the GIL for large payloads. zlib supports no window of 8 bits.

    Args:
        payload: any size; the caller compares it with COMPRESS_FROM_BYTES.
        window_bits: 9 to 15; no connection that gets the result may have a smaller window.

    Raises:
        ValueError: window_bits is out of range.
    """
    if not 9 <= window_bits <= 15:
        raise ValueError(f"window_bits must be 9 to 15, not {window_bits!r}")
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -window_bits, MEMORY_LEVEL)
    data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    # A sync flush ends with 00 00 ff ff, which the sender removes (RFC 7692, section 7.2.1).
    return data[:-_SYNC_MARKER_BYTES]
