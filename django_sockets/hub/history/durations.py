"""How long the healing of channels takes, for observers."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ...delivery.batch import Segment
from ...observer import HistoryHealed, seam

__all__ = ["HealingDurations"]


class HealingDurations:
    """The begin of each healing. Nothing is noted while there are no observers.

    Args:
        broker: the scheme of the broker's URL.
    """

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._since: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """Messages of a channel are missing. A healing that has begun goes on."""
        if seam.observer is not None:
            self._since.setdefault(name, time.perf_counter())

    def end(self, name: str, segments: Iterable[Segment]) -> None:
        """A channel has everything that it can get.

        Args:
            segments: what is delivered for it; a gap for all its subscribers means that something
                is missing.
        """
        if name in self._since:
            gaps = [gap for gap, _ in segments if gap is not None and gap.recipients is None]
            self._report(name, "gap" if gaps else "healed")

    def gap(self, name: str) -> None:
        """A gap was signalled instead."""
        if name in self._since:
            self._report(name, "gap")

    def forget(self, name: str) -> None:
        """Nobody is subscribed to a channel any more."""
        self._since.pop(name, None)

    def _report(self, name: str, outcome: str) -> None:
        seconds = time.perf_counter() - self._since.pop(name)
        if (observer := seam.observer) is not None:
            observer.history_healed(
                HistoryHealed(broker=self._broker, seconds=seconds, outcome=outcome)
            )
