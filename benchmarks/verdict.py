"""The promises on performance: each is a figure with a bound."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable

from .environments import BARE, LIMIT, OURS, PUBLISHED, PUBSUB, REDIS_PY, Peer
from .results import ByRun, Results
from .scenarios import BEFORE_STORMS, CHANNELS, SOCKETS

Figure = tuple[str, Peer, str]
"""A scenario, a peer, and the name of a figure."""

ONE_SERVER = (
    "private",
    "rooms",
    *(f"sockets-{count}" for count in SOCKETS),
    *(f"channels-{count}" for count in CHANNELS),
)
STORMS = tuple(f"storm-{before}" for before in BEFORE_STORMS)


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


def ratio(one: Figure, other: Figure) -> Callable[[Results], ByRun]:
    """The quotient of two figures, for each run."""

    def of(results: Results) -> ByRun:
        ones, others = results.figure(*one), results.figure(*other)
        return {run: ones[run] / others[run] for run in ones if others.get(run)}

    return of


def difference(one: Figure, other: Figure) -> Callable[[Results], ByRun]:
    """The difference of two figures, for each run."""

    def of(results: Results) -> ByRun:
        ones, others = results.figure(*one), results.figure(*other)
        return {run: ones[run] - others[run] for run in ones if run in others}

    return of


def plain(figure: Figure) -> Callable[[Results], ByRun]:
    """The figure itself."""
    return lambda results: results.figure(*figure)


def growth_points(small: str, large: str) -> Callable[[Results], ByRun]:
    """The growth of our cost per delivery minus that of the limit, in percentage points."""
    cost = "server_cpu_us_per_delivery"

    def of(results: Results) -> ByRun:
        ours = ratio((large, OURS, cost), (small, OURS, cost))(results)
        limit = ratio((large, LIMIT, cost), (small, LIMIT, cost))(results)
        return {run: (ours[run] - limit[run]) * 100 for run in ours if run in limit}

    return of


def storms_against(peer: Peer) -> Callable[[Results], ByRun]:
    """This library's handshakes per second over a peer's, for all storms of a run together."""

    def seconds_each(results: Results, peer: Peer) -> ByRun:
        rates = [results.figure(storm, peer, _HANDSHAKES) for storm in STORMS]
        whole = [run for run in rates[0] if all(run in rate for rate in rates)]
        return {run: sum(1 / rate[run] for rate in rates) for run in whole}

    def of(results: Results) -> ByRun:
        ours, other = seconds_each(results, OURS), seconds_each(results, peer)
        return {run: other[run] / ours[run] for run in ours if run in other}

    return of


def most_connections(results: Results) -> ByRun:
    """The most broker connections in any scenario with one server."""
    most: ByRun = {}
    for name in ONE_SERVER:
        for run, count in results.figure(name, OURS, "broker_connections").items():
            most[run] = max(count, most.get(run, 0))
    return most


def _against(
    scenario: str, peer: Peer, name: str, *, inverse: bool = False
) -> Callable[[Results], ByRun]:
    ours, other = (scenario, OURS, name), (scenario, peer, name)
    return ratio(other, ours) if inverse else ratio(ours, other)


_RATE, _CPU, _KIB = "deliveries_per_second", "server_cpu_us_per_delivery", "kib_per_socket"
_INSIDE, _READ, _HANDSHAKES = "cpu_us_per_delivery", "cpu_us_per_message", "handshakes_per_second"

BOUNDS = (
    Bound("fan-out, deliveries/s: to the limit", _against("fan-out", LIMIT, _RATE), at_least=0.9),
    Bound("fan-out: to 3.1.0", _against("fan-out", PUBLISHED, _RATE), at_least=3),
    Bound("fan-out: to channels + pubsub", _against("fan-out", PUBSUB, _RATE), at_least=12),
    Bound("latency, p50: to the limit", _against("latency", LIMIT, "p50_ms"), at_most=1.3),
    Bound("latency, p99: to the limit", _against("latency", LIMIT, "p99_ms"), at_most=1.5),
    Bound(
        "private channels, server CPU per delivery: to the limit",
        _against("private", LIMIT, _CPU),
        at_most=1.3,
    ),
    Bound(
        "delivery in one process: CPU, or 3.1.0's over it",
        plain(("delivery", OURS, _INSIDE)),
        at_most=0.8,
        unit="us",
        otherwise=Bound("", _against("delivery", PUBLISHED, _INSIDE, inverse=True), at_least=12),
    ),
    Bound(
        "reading a message: CPU, or redis-py's over it",
        plain(("reading", OURS, _READ)),
        at_most=1.2,
        unit="us",
        otherwise=Bound("", _against("reading", REDIS_PY, _READ, inverse=True), at_least=4),
    ),
    Bound(
        "broadcasts of 1,000 tasks/s: to redis-py one by one",
        _against("publishing", REDIS_PY, "broadcasts_per_second"),
        at_least=5,
    ),
    Bound(
        "broadcasts of 1,000 tasks: connections",
        plain(("publishing", OURS, "broker_connections_opened")),
        at_most=4,
        unit="",
    ),
    Bound(
        "broadcasts of 1,000 tasks: errors",
        plain(("publishing", OURS, "errors")),
        at_most=0,
        unit="",
    ),
    Bound(
        "idle socket, one channel for all: without the server's own",
        difference(("idle", OURS, _KIB), ("idle", BARE, _KIB)),
        at_most=10,
        unit="KiB",
    ),
    Bound(
        "idle socket, a channel each: without the server's own",
        difference((STORMS[0], OURS, _KIB), (STORMS[0], BARE, _KIB)),
        at_most=10,
        unit="KiB",
    ),
    Bound(
        "connect and subscribe storm, handshakes/s: to the bare server",
        storms_against(BARE),
        at_least=0.8,
    ),
    Bound(
        "growth, 1k to 10k sockets: beyond the limit's",
        growth_points(f"sockets-{SOCKETS[0]}", f"sockets-{SOCKETS[-1]}"),
        at_most=15,
        unit="points",
    ),
    Bound(
        "growth, 1k to 100k channels: beyond the limit's",
        growth_points(f"channels-{CHANNELS[0]}", f"channels-{CHANNELS[-1]}"),
        at_most=15,
        unit="points",
    ),
    Bound(
        # A process has one connection to subscribe and one to publish.
        "broker connections of a process, at most",
        most_connections,
        at_most=2,
        unit="",
    ),
    Bound(
        "import beyond redis-py's",
        plain(("import", OURS, "import_ms")),
        at_most=50,
        unit="ms",
    ),
)


def judge(results: Results) -> list[Verdict]:
    """The verdict on every promise."""
    verdicts = []
    for bound in BOUNDS:
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
