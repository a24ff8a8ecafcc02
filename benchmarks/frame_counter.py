"""Counts the websocket frames in a buffer: in C if there is a compiler, else in Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator


class Counted(ctypes.Structure):
    """Length of the complete frames, number of data frames among them, whether the last closes."""

    _fields_ = (
        ("bytes", ctypes.c_size_t),
        ("frames", ctypes.c_size_t),
        ("closes", ctypes.c_int),
    )


CountFrames = Callable[[bytes, int], Counted]


def complete_frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Opcode, start and end of each complete frame."""
    start, left = 0, len(data)
    while left >= 2:
        size, head = data[start + 1] & 127, 2
        if size >= 126:
            head = 4 if size == 126 else 10
            size = int.from_bytes(data[start + 2 : start + head], "big")
        if left < head + size:
            return
        yield data[start] & 15, start, start + head + size
        start += head + size
        left -= head + size


def count_frames(data: bytes, size: int) -> Counted:
    """`count_frames` of `c/count_frames.c`, slower."""
    counted = Counted(0, 0, 0)
    for kind, _, end in complete_frames(data):
        counted.bytes = end
        counted.frames += kind in (1, 2)
        counted.closes = kind == 8
        if kind == 8:
            break
    return counted


def counter(library: str) -> CountFrames:
    """The function of the library, or the one in Python."""
    if not library:
        return count_frames
    function = ctypes.CDLL(library).count_frames
    function.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    function.restype = Counted
    found: CountFrames = function
    return found
