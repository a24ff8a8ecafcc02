"""The members of a channel as frames of the protocol `django-sockets.v1`.

A list that is too long for one frame is divided between its members. docs/client-protocol.md
specifies the frames.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..codec import encode_json
from .message import Delivery

__all__ = ["MEMBERS_BYTES", "change_frames", "list_frames", "member_parts"]

MEMBERS_BYTES = 128 * 1024
"""The most bytes of members in one frame, unless one member alone has more."""
MEMBERS_AT_ONCE = 64
"""Members that are encoded with one call. More would be encoded twice if they do not fit."""

Members = Mapping[str, list[Any]]


def member_parts(members: Members) -> Iterator[bytes]:
    """Divide members into JSON objects of at most `MEMBERS_BYTES`, or of one member."""
    part: list[bytes] = []
    size_bytes = 2
    for piece in _pieces(members):
        if part and size_bytes + len(piece) > MEMBERS_BYTES:
            yield b"{" + b",".join(part) + b"}"
            part, size_bytes = [], 2
        part.append(piece)
        size_bytes += len(piece) + 1
    if part:
        yield b"{" + b",".join(part) + b"}"


def _pieces(members: Members) -> Iterator[bytes]:
    """The members as JSON without braces, several at a time."""
    left = iter(members.items())
    while some := list(itertools.islice(left, MEMBERS_AT_ONCE)):
        yield from _fitting(some)


def _fitting(members: list[tuple[str, list[Any]]]) -> Iterator[bytes]:
    text = _encoded(dict(members))[1:-1]
    if len(text) + 2 <= MEMBERS_BYTES or len(members) == 1:
        yield text
    else:
        middle = len(members) // 2
        yield from _fitting(members[:middle])
        yield from _fitting(members[middle:])


def _encoded(members: Members) -> bytes:
    try:
        return msgspec.json.encode(members)
    except (TypeError, ValueError, OverflowError, RecursionError):
        # msgspec refuses lone surrogates and integers of more than 64 bits.
        return encode_json(members).encode()


def change_frames(channel: str, joined: Members, left: Members, updated: Members) -> list[Delivery]:
    """The frames of one change, which all clients of the process share."""
    kinds = {"joined": joined, "left": left, "updated": updated}
    parts = {kind: list(member_parts(members)) for kind, members in kinds.items()}
    if sum(len(part) for some in parts.values() for part in some) <= MEMBERS_BYTES:
        return [_change(channel, **{kind: some[0] for kind, some in parts.items() if some})]
    return [_change(channel, **{kind: part}) for kind in parts for part in parts[kind]]


def _change(
    channel: str, joined: bytes = b"{}", left: bytes = b"{}", updated: bytes = b""
) -> Delivery:
    more = b',"updated":' + updated if updated else b""
    return _frame(channel, b'"joined":' + joined + b',"left":' + left + more)


def list_frames(channel: str, members: Members, *, is_whole: bool) -> Iterator[Delivery]:
    """The frames with the whole list of a channel.

    Args:
        is_whole: the last frame ends the list. Otherwise the answer to a `subscribe` ends it.
    """
    parts = member_parts(members)
    part = next(parts, b"{}")
    for following in parts:
        yield _frame(channel, b'"sync":' + part + b',"more":true')
        part = following
    yield _frame(channel, b'"sync":' + part + (b"" if is_whole else b',"more":true'))


def _frame(channel: str, content: bytes) -> Delivery:
    name = json.dumps(channel).encode()
    return Delivery.of_frame(channel, b'{"presence":{"channel":' + name + b"," + content + b"}}")
