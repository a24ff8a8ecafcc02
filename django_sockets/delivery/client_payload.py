"""The payloads that clients of the protocol `django-sockets.v1` get instead of the published bytes.

The JSON text of a broadcast is put into its frame unchanged: it is neither parsed nor encoded
again. docs/client-protocol.md specifies the frames.
"""

from __future__ import annotations

import functools
import json

__all__ = [
    "CLIENT_PROTOCOL",
    "channel_payload",
    "own_payload",
]

CLIENT_PROTOCOL = 16
"""Added to the `window_bits` of a send queue, which are at most 15: its client speaks the protocol.
Clients with equal bits share their frames."""


@functools.lru_cache(maxsize=4096)
def _beginning(channel: str) -> bytes:
    return b'{"channel":' + json.dumps(channel).encode()


def channel_payload(channel: str, data: bytes, is_text: bool, position: str | None) -> bytes:
    """The payload of a frame for a broadcast.

    Args:
        data: JSON text in UTF-8 if `is_text`, else any bytes.
        position: the position of the message in the history of the channel, or None.
    """
    end = b"}" if position is None else b',"position":' + json.dumps(position).encode() + b"}"
    if is_text:
        return b"".join((_beginning(channel), b',"data":', data, end))
    header = _beginning(channel) + end
    return b"".join((len(header).to_bytes(2, "big"), header, data))


def own_payload(data: bytes, is_text: bool) -> bytes:
    """The payload of a frame for a message to one client; see `channel_payload`."""
    return b'{"data":' + data + b"}" if is_text else b"\0\x02{}" + data
