"""Figures that are computed from measurements, run by run."""

from __future__ import annotations

from collections.abc import Callable

from .contenders import LIMIT, OURS
from .environments import Peer
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
HANDSHAKES = "handshakes_per_second"


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
        rates = [results.figure(storm, peer, HANDSHAKES) for storm in STORMS]
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


def against(
    scenario: str, peer: Peer, name: str, *, inverse: bool = False
) -> Callable[[Results], ByRun]:
    """This library's figure over a peer's, or with `inverse` the other way round."""
    ours, other = (scenario, OURS, name), (scenario, peer, name)
    return ratio(other, ours) if inverse else ratio(ours, other)
