"""Which rooms a client asks for by its path."""

from __future__ import annotations


def rooms_of(path: str) -> list[str]:
    """`/room-7` is one room; `/room-/100/30` are thirty, from room-100 on."""
    name, *numbers = path.strip("/").split("/")
    if not numbers:
        return [name]
    first, count = map(int, numbers)
    return [f"{name}{number}" for number in range(first, first + count)]
