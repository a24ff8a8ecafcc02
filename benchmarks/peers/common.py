"""Code that the applications of the peers share."""

from __future__ import annotations

import os

GREETS = "BENCH_SILENT" not in os.environ
"""Whether a socket sends a greeting after it has subscribed."""


def rooms_of(path: str) -> list[str]:
    """`/room-7` is one room; `/room-/100/30` are thirty rooms, beginning with room-100."""
    name, *numbers = path.strip("/").split("/")
    if not numbers:
        return [name]
    first, count = map(int, numbers)
    return [f"{name}{number}" for number in range(first, first + count)]
