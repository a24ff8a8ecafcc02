"""Promises, each a figure with a bound, and the verdict on them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from .results import ByRun, Results


@dataclasses.dataclass(frozen=True)
class Bound:
    """A promise, which holds if the median of the runs is within the bound.

    Attributes:
        what: the name of the figure.
        of: returns the figure, run by run.
        otherwise: another bound; the promise also holds if that one is kept.
    """

    what: str
    of: Callable[[Results], ByRun]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"
    otherwise: Bound | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """A figure and whether its bound is kept; median, minimum and maximum of the runs."""

    median: float
    least: float
    most: float
    unit: str
    kept: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a promise.

    Attributes:
        bound: the bound, or both alternatives, in words.
        measured: the figure for each alternative; None if it was not measured.
        held: whether one alternative is kept; None if nothing was measured.
    """

    figure: str
    bound: str
    measured: list[Measured | None]
    held: bool | None


def judge(bounds: Sequence[Bound], results: Results) -> list[Verdict]:
    """The verdict on every promise."""
    verdicts = []
    for bound in bounds:
        alternatives = [bound] if bound.otherwise is None else [bound, bound.otherwise]
        measured = [_measured(alternative, results) for alternative in alternatives]
        answers = [found.kept for found in measured if found is not None]
        held = any(answers) if answers else None
        words = " or ".join(_words(alternative) for alternative in alternatives)
        verdicts.append(Verdict(bound.what, words, measured, held))
    return verdicts


def _measured(bound: Bound, results: Results) -> Measured | None:
    by_run = bound.of(results).values()
    if not by_run:
        return None
    median = statistics.median(by_run)
    too_low = bound.at_least is not None and median < bound.at_least
    too_high = bound.at_most is not None and median > bound.at_most
    kept = not (too_low or too_high)
    return Measured(median, min(by_run), max(by_run), bound.unit, kept)


def _words(bound: Bound) -> str:
    words = f"<= {bound.at_most:g}" if bound.at_least is None else f">= {bound.at_least:g}"
    return f"{words} {bound.unit}".strip()
