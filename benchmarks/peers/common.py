"""What the applications of the peers have in common."""

from __future__ import annotations

import os

GREETS = "BENCH_SILENT" not in os.environ
"""Whether a socket hears a greeting once it is subscribed."""


def rooms_of(path: str) -> list[str]:
    """`/room-7` is one room; `/room-/100/30` are thirty, from room-100 on."""
    name, *numbers = path.strip("/").split("/")
    if not numbers:
        return [name]
    first, count = map(int, numbers)
    return [f"{name}{number}" for number in range(first, first + count)]
