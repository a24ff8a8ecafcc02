"""A strict parser of what a server writes to a websocket. It shares no code with `websockets`."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

__all__ = ["CLOSE", "PING", "PONG", "ParsedFrame", "parse"]

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


@dataclass(frozen=True)
class ParsedFrame:
    """One frame. A compressed payload is decompressed."""

    opcode: int
    payload: bytes


def parse(stream: bytes, window_bits: int = 0) -> tuple[list[ParsedFrame], bytes]:
    """All complete frames, and the bytes of an incomplete one at the end.

    Args:
        window_bits: of a connection that negotiated compression without context; else 0.

    Raises:
        AssertionError: a frame is not what a server may write.
    """
    found: list[ParsedFrame] = []
    at = 0
    while len(stream) - at >= 2:
        first, size = stream[at], stream[at + 1]
        assert first & 0x80, "a fragment"
        assert not first & 0x30, "a reserved bit"
        assert size < 128, "a masked frame"
        body = at + 2
        if size >= 126:
            length = 2 if size == 126 else 8
            size = int.from_bytes(stream[body : body + length], "big")
            body += length
        if len(stream) < body + size:
            break
        payload, opcode = stream[body : body + size], first & 0x0F
        assert opcode in (TEXT, BINARY, CLOSE, PING, PONG), f"opcode {opcode}"
        if first & 0x40:
            assert window_bits, "a compressed frame that nobody negotiated"
            assert opcode in (TEXT, BINARY)
            inflater = zlib.decompressobj(-window_bits)
            payload = inflater.decompress(payload + b"\x00\x00\xff\xff")
            assert not inflater.unused_data
        if opcode == TEXT:
            payload.decode()
        found.append(ParsedFrame(opcode, payload))
        at = body + size
    return found, stream[at:]
