"""The lists of presence in the answer to a `subscribe`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..delivery.presence_frames import MEMBERS_BYTES, list_frames, member_parts

__all__ = ["lists_ahead"]


def lists_ahead(answers: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """Take the lists that do not fit into one answer out of the entries that have them.

    Yields:
        The frames with these lists, to be sent before the answer.
    """
    room = MEMBERS_BYTES
    for answer in answers:
        members = answer.get("presence")
        if not members:
            continue
        parts = member_parts(members)
        size_bytes = len(next(parts))
        if size_bytes <= room and next(parts, None) is None:
            room -= size_bytes
            continue
        answer["presence"] = {}
        for frame in list_frames(answer["channel"], members, is_whole=False):
            yield frame.payload
