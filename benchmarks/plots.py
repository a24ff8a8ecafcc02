"""The plots of docs/benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .contenders import BARE, FLOOR, LIMIT, NODE, OURS, PEERS
from .environments import Peer
from .figures import difference
from .results import ByRun, Results
from .scenarios import CHANNELS, SOCKETS

PLOTS = {
    "fan-out": "Fan-out, 500 sockets in one channel: deliveries a second (more is better)",
    "compression": "Fan-out of 1 kB of JSON, 500 sockets: deliveries a second (more is better)",
    "steady": "One message at a time, a channel for each socket: server CPU, us (less is better)",
    "latency": "Latency, 100 sockets, 100 messages a second: ms (less is better)",
    "memory": "Memory of an idle socket, without the server's own: KiB (less is better)",
    "growth": "Growth: server CPU per delivery, us (flat is better)",
}
COLOURS = {OURS: "#1f6f4a", LIMIT: "#c3c9d1", FLOOR: "#b5651d"}
OTHER_COLOUR = "#8a93a0"
SETTINGS: Any = {
    "font.size": 9,
    "svg.hashsalt": "benchmarks",  # With a fixed salt the same figures give the same file.
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(results: Results, directory: Path, suffix: str = "svg") -> None:
    """Write every plot; a plot shows only the peers that were measured."""
    with mpl.rc_context(SETTINGS):
        for name, plot in _DRAWN_BY.items():
            figure = Figure(figsize=(7, 3), layout="constrained")
            figure.suptitle(PLOTS[name], fontsize=10)
            plot(results, figure)
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(directory / f"{name}.{suffix}", metadata=metadata, dpi=120)


def _fan_out(results: Results, figure: Figure) -> None:
    found = {peer: results.figure("fan-out", peer, "deliveries_per_second") for peer in PEERS}
    axes = figure.subplots()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _bars(axes, found)


def _compression(results: Results, figure: Figure) -> None:
    panels = (("fan-out-1k", "uncompressed"), ("fan-out-1k-deflate", "compressed"))
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        axes.set_title(title, fontsize=9)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        # Both panels have the same rows, although the floor has no compression.
        shown = [peer for peer in PEERS if results.of("fan-out-1k", peer)]
        found = {peer: results.figure(name, peer, "deliveries_per_second") for peer in shown}
        _bars(axes, found, empty_rows=True)


def _steady(results: Results, figure: Figure) -> None:
    name = "server_cpu_us_per_delivery"
    _bars(figure.subplots(), {p: results.figure("steady-private", p, name) for p in PEERS})


def _memory(results: Results, figure: Figure) -> None:
    def beyond_bare(peer: Peer) -> ByRun:
        if peer.environment in (NODE.environment, FLOOR.environment):
            return {}  # It does not run under uvicorn, which the bare server measures.
        name = "kib_per_socket"
        return difference(("idle", peer, name), ("idle", BARE, name))(results)

    _bars(figure.subplots(), {peer: beyond_bare(peer) for peer in PEERS if peer is not BARE})


def _latency(results: Results, figure: Figure) -> None:
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("p50_ms", "p99_ms"), strict=True):
        axes.set_xscale("log")
        axes.set_title(name.replace("_ms", ""), fontsize=9)
        _bars(axes, {peer: results.figure("latency", peer, name) for peer in PEERS})
        axes.set_xlim(left=0.1)


def _growth(results: Results, figure: Figure) -> None:
    panels = (("sockets", SOCKETS), ("channels", CHANNELS))
    for axes, (kind, counts) in zip(figure.subplots(1, 2), panels, strict=True):
        for peer in (FLOOR, LIMIT, OURS):
            colour = COLOURS.get(peer, OTHER_COLOUR)
            name = "server_cpu_us_per_delivery"
            found = {n: list(results.figure(f"{kind}-{n}", peer, name).values()) for n in counts}
            found = {n: values for n, values in found.items() if values}
            if not found:
                continue
            lows, highs = map(min, found.values()), map(max, found.values())
            medians = [statistics.median(values) for values in found.values()]
            axes.fill_between(list(found), list(lows), list(highs), color=colour, alpha=0.2)
            axes.plot(list(found), medians, "o-", color=colour, label=peer.name)
            axes.legend(frameon=False, loc="lower right")
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{n // 1000}k" for n in counts])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(kind)
        axes.set_ylim(bottom=0)


def _bars(axes: Axes, found: dict[Peer, ByRun], *, empty_rows: bool = False) -> None:
    """Draw the medians with their numbers, and lines from the lowest to the highest value."""
    rows = [(peer, list(by_run.values())) for peer, by_run in found.items()]
    rows = [(peer, values) for peer, values in rows if values or empty_rows]
    for place, (peer, values) in enumerate(reversed(rows)):
        if not values:
            continue
        median = statistics.median(values)
        colour = COLOURS.get(peer, OTHER_COLOUR)
        error = [[median - min(values)], [max(values) - median]]
        axes.barh(place, median, color=colour, xerr=error, ecolor="#333", capsize=2)
        text = f"{median:,.0f}" if median >= 100 else f"{median:,.1f}"
        axes.annotate(text, (max(values), place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [peer.name for peer, _ in reversed(rows)])
    axes.margins(x=0.15)


_DRAWN_BY: dict[str, Callable[[Results, Figure], None]] = {
    "fan-out": _fan_out,
    "compression": _compression,
    "steady": _steady,
    "latency": _latency,
    "memory": _memory,
    "growth": _growth,
}
