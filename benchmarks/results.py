"""The results so far, and the file that stores them."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from .environments import Peer

ByRun = dict[int, float]
"""Number of the run -> a figure of that run."""


class Failed(Exception):
    """A measurement of a peer has failed; the text is the reason."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One peer in one scenario of one run.

    Attributes:
        peer: its key.
        seconds: the duration of the measurement, including starting and stopping.
        values: name -> figure; the name ends with the unit.
        failed: the reason of a failure, or "".
    """

    run: int
    scenario: str
    peer: str
    seconds: float
    values: dict[str, float]
    failed: str = ""


@dataclasses.dataclass
class Results:
    """All results.

    Attributes:
        machine: the description of the machine.
        versions: environment -> package -> version.
        left_out: key of a peer -> the reason why it was not measured.
    """

    machine: dict[str, str]
    versions: dict[str, dict[str, str]]
    left_out: dict[str, str]
    measurements: list[Measurement] = dataclasses.field(default_factory=list)

    def of(self, scenario: str, peer: Peer) -> list[Measurement]:
        """The measurements of a peer in a scenario, run by run."""
        return [m for m in self.measurements if (m.scenario, m.peer) == (scenario, peer.key)]

    def figure(self, scenario: str, peer: Peer, name: str) -> ByRun:
        """One figure of a peer in a scenario, for each run that has it."""
        return {m.run: m.values[name] for m in self.of(scenario, peer) if name in m.values}

    def scenarios(self) -> set[str]:
        """The scenarios that were measured."""
        return {m.scenario for m in self.measurements}

    def write(self, path: Path, **more: Any) -> None:
        """Write JSON; the file is replaced as a whole."""
        text = json.dumps({**dataclasses.asdict(self), "summary": self.summary(), **more}, indent=1)
        fresh = path.with_suffix(".new")
        fresh.write_text(text + "\n")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file that `write` has written."""
        found = json.loads(path.read_text())
        return cls(
            found["machine"],
            found["versions"],
            found["left_out"],
            [Measurement(**item) for item in found["measurements"]],
        )

    def summary(self) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """Scenario -> peer -> figure -> median, min, max."""
        values: dict[str, dict[str, dict[str, list[float]]]] = {}
        for m in self.measurements:
            figures = values.setdefault(m.scenario, {}).setdefault(m.peer, {})
            for name, value in m.values.items():
                figures.setdefault(name, []).append(value)
        return {
            scenario: {
                peer: {
                    name: {"median": statistics.median(all_), "min": min(all_), "max": max(all_)}
                    for name, all_ in figures.items()
                }
                for peer, figures in peers.items()
            }
            for scenario, peers in values.items()
        }
