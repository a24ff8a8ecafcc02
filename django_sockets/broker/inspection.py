"""The ability to inspect the server, for `python -m django_sockets check`."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

__all__ = ["Inspectable", "Report"]


@dataclasses.dataclass
class Report:
    """Facts about the server of a broker, for `python -m django_sockets check`.

    Attributes:
        server: product and version, such as "valkey 9.1.0".
        topology: such as "one node".
        nodes: address of each server that carries messages -> its role and round trip time.
        features: short name -> finding.
        limits: short name -> value with its unit.
        warnings: sentences that name a risk and what to do about it.
        problem: why the server cannot serve as a broker, or None.
    """

    server: str
    topology: str
    nodes: dict[str, str] = dataclasses.field(default_factory=dict)
    features: dict[str, str] = dataclasses.field(default_factory=dict)
    limits: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    problem: str | None = None


@runtime_checkable
class Inspectable(Protocol):
    """A broker that can inspect its server."""

    async def inspect(self) -> Report:
        """Ask the server for its product, topology and abilities.

        Raises:
            ConnectError: the server could not be reached.
        """
