"""What the nodes of a cluster say about it, read; and which slot a name is in.

For `clusters` and `cluster_repair`. Sends nothing.
"""

from __future__ import annotations

import binascii
import dataclasses
from collections.abc import Iterable
from typing import Any

__all__ = ["SLOTS", "Line", "Range", "View", "ranges", "slot_of", "spread"]

SLOTS = 16384

Range = tuple[int, int]
"""First and last slot, both included."""


def slot_of(name: str | bytes) -> int:
    """The slot of a key or channel: of its hash tag, if it has one.

    https://valkey.io/topics/cluster-spec/, "Key distribution model".
    """
    data = name.encode() if isinstance(name, str) else name
    _, brace, rest = data.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if brace and closing and tag else data, 0) % SLOTS


def ranges(slots: Iterable[int]) -> tuple[Range, ...]:
    """The slots as ranges, in order."""
    found: list[Range] = []
    for slot in sorted(set(slots)):
        if found and found[-1][1] == slot - 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return tuple(found)


def spread(found: Iterable[Range]) -> set[int]:
    """The slots in the ranges."""
    return {slot for first, last in found for slot in range(first, last + 1)}


@dataclasses.dataclass(frozen=True)
class Line:
    """What a node knows about one node: a line of CLUSTER NODES.

    Attributes:
        primary: the id of the node that it follows, "" for a primary.
        well: reachable, and not suspected by the node that says this.
        slots: its slots.
        moving: slots on their way in or out; a node says it of itself only.
    """

    id: str
    primary: str
    epoch: int
    well: bool
    slots: tuple[Range, ...]
    moving: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Line:
        name, _, flags, primary, _, _, epoch, link, *slots = text.split(" ")
        doubts = {"fail", "fail?", "handshake", "noaddr"} & set(flags.split(","))
        settled = [slot.split("-") for slot in slots if slot[0] != "["]
        return cls(
            id=name,
            primary="" if primary == "-" else primary,
            epoch=int(epoch),
            well=not doubts and (link == "connected" or "myself" in flags),
            slots=tuple((int(words[0]), int(words[-1])) for words in settled),
            moving=tuple(int(slot[1:].split("-")[0]) for slot in slots if slot[0] == "["),
        )


@dataclasses.dataclass(frozen=True)
class View:
    """What one node knows.

    Attributes:
        ok: its cluster_state.
        linked: it is a primary, or follows one and its data is in step.
        me: its line about itself.
        lines: id -> line, of every node that it knows.
        served: ids of the nodes that it names to clients: no replica without data, and of others'
            replicas it hears later that they have some.
    """

    ok: bool
    linked: bool
    me: Line
    lines: dict[str, Line]
    served: frozenset[str]

    COMMANDS = (("CLUSTER", "INFO"), ("ROLE",), ("CLUSTER", "NODES"), ("CLUSTER", "SLOTS"))

    @classmethod
    def parse(cls, info: str, role: list[str], nodes: str, slots: list[list[Any]]) -> View:
        """Read the replies to `COMMANDS`."""
        texts = nodes.splitlines()
        lines = [Line.parse(text) for text in texts]
        mine = next(line for line, text in zip(lines, texts, strict=True) if "myself" in text)
        return cls(
            ok="cluster_state:ok" in info,
            linked=role[0] == "master" or role[3] == "connected",
            me=mine,
            lines={line.id: line for line in lines},
            served=frozenset(node[2] for _, _, *nodes in slots for node in nodes),
        )
