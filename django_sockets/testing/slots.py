"""Parses the reports of cluster nodes, and computes the slot of a name.

Used by `clusters` and `cluster_repair`. This module sends nothing.
"""

from __future__ import annotations

import binascii
import dataclasses
from collections.abc import Iterable
from typing import Any

__all__ = ["SLOTS", "Line", "Range", "View", "ranges", "slot_of", "spread"]

SLOTS = 16384

Range = tuple[int, int]
"""First and last slot, both inclusive."""


def slot_of(name: str | bytes) -> int:
    """The slot of a key or channel, computed from its hash tag if it has one.

    https://valkey.io/topics/cluster-spec/, "Key distribution model".
    """
    data = name.encode() if isinstance(name, str) else name
    _, brace, rest = data.partition(b"{")
    tag, closing, _ = rest.partition(b"}")
    return binascii.crc_hqx(tag if brace and closing and tag else data, 0) % SLOTS


def ranges(slots: Iterable[int]) -> tuple[Range, ...]:
    """The ranges that contain exactly these slots, in order."""
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
    """A line of CLUSTER NODES: the knowledge of one node about another one or itself.

    Attributes:
        primary: the id of the node that it replicates; "" for a primary.
        well: whether it is reachable and not suspected, for the node that reports the line.
        slots: its slots.
        moving: slots that migrate in or out; a node reports only its own.
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
    """The knowledge of one node about the cluster.

    Attributes:
        ok: whether its cluster_state is ok.
        linked: whether it is a primary, or a replica that is in sync.
        me: its line about itself.
        lines: id -> line of every node that it knows.
        served: ids of the nodes that it names to clients. A replica without data is not among them.
            The replicas of other primaries appear later, when they report their data.
    """

    ok: bool
    linked: bool
    me: Line
    lines: dict[str, Line]
    served: frozenset[str]

    COMMANDS = (("CLUSTER", "INFO"), ("ROLE",), ("CLUSTER", "NODES"), ("CLUSTER", "SLOTS"))

    @classmethod
    def parse(cls, info: str, role: list[str], nodes: str, slots: list[list[Any]]) -> View:
        """Parse the replies to `COMMANDS`."""
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
