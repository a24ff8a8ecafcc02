"""Tables in Markdown, for the terminal and for docs/benchmarks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from .bounds import BOUNDS
from .contenders import PEERS
from .plots import PLOTS
from .results import Measurement, Results
from .scenarios import SCENARIOS
from .verdict import Measured, Verdict, judge

HELD = {True: "held", False: "**not held**", None: "not measured"}
PACKAGES = frozenset(
    "python node Django asgiref django-sockets django_sockets channels channels_redis uvicorn "
    "uvloop websockets redis hiredis msgpack msgspec orjson ws ioredis cc".split()
)
RUN_WITH = (
    "This page was written by `make bench BENCH_ARGS=--save`. The values are medians over "
    "interleaved runs, with the lowest and the highest value in parentheses. Ratios are taken "
    "within each run and can be compared between machines; absolute figures are valid for this "
    "machine only. docs/performance.md describes the method."
)


def number(value: float) -> str:
    """Format a number with about three digits."""
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def spread(values: Iterable[float]) -> str:
    """Format median, lowest and highest value."""
    values = list(values)
    median = number(statistics.median(values))
    if min(values) == max(values):
        return median
    return f"{median} ({number(min(values))} to {number(max(values))})"


def tables(results: Results) -> str:
    """The verdict, then a table for each scenario."""
    parts = [_verdict_table(judge(BOUNDS, results))]
    measured = results.scenarios()
    parts += [_scenario_table(name, results) for name in SCENARIOS if name in measured]
    parts += [f"Left out: {key}: {why}." for key, why in results.left_out.items()]
    return "\n\n".join(parts) + "\n"


def page(results: Results) -> str:
    """The text of docs/benchmarks/README.md."""
    facts = [f"| {name} | {value} |" for name, value in results.machine.items()]
    facts += [f"| {name} | {_list(found)} |" for name, found in results.versions.items()]
    machine = "\n".join(["| machine | |", "|---|---|", *facts])
    images = "\n".join(f"![{title}]({name}.svg)\n" for name, title in PLOTS.items())
    return f"# Benchmarks\n\n{RUN_WITH}\n\n{images}\n{tables(results)}\n## Machine\n\n{machine}\n"


def _list(versions: dict[str, str]) -> str:
    """The versions of the packages in `PACKAGES`; the JSON file has all."""
    known = {package: version for package, version in versions.items() if package in PACKAGES}
    return ", ".join(f"{package} {version}" for package, version in known.items())


def _verdict_table(verdicts: list[Verdict]) -> str:
    lines = ["## Verdict\n", "| figure | measured | bound | |", "|---|---|---|---|"]
    for verdict in verdicts:
        measured = "; ".join(_measured(found) for found in verdict.measured if found is not None)
        lines.append(f"| {verdict.figure} | {measured} | {verdict.bound} | {HELD[verdict.held]} |")
    return "\n".join(lines)


def _measured(found: Measured) -> str:
    text = f"{number(found.median)} {found.unit}".strip()
    if found.least == found.most:
        return text
    return f"{text} ({number(found.least)} to {number(found.most)})"


def _scenario_table(name: str, results: Results) -> str:
    rows = [(peer, results.of(name, peer)) for peer in PEERS]
    rows = [(peer, measurements) for peer, measurements in rows if measurements]
    figures = list(dict.fromkeys(f for _, ms in rows for m in ms for f in m.values))
    titles = " | ".join(figure.replace("_", " ") for figure in figures)
    lines = [f"## {SCENARIOS[name].title}\n", f"| {name} | {titles} | |"]
    lines.append("|---" * (len(figures) + 2) + "|")
    for peer, measurements in rows:
        by_run = [results.figure(name, peer, figure).values() for figure in figures]
        cells = [spread(values) if values else "" for values in by_run]
        cells.append(_failures(measurements))
        lines.append(f"| {peer.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _failures(measurements: list[Measurement]) -> str:
    reasons = [m.failed for m in measurements if m.failed]
    if not reasons:
        return ""
    return f"failed in {len(reasons)} of {len(measurements)} runs: {reasons[0]}".replace("|", "/")
