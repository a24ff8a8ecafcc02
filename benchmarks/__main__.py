"""`make bench` runs all benchmarks; BENCH_ARGS="--only fan-out --runs 1" runs a part."""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import machine, plots, report
from .bounds import BOUNDS
from .brokers import running
from .contenders import OURS, PEERS
from .environments import CACHE, ROOT, Peer
from .results import Failed, Measurement, Results
from .scenarios import SCENARIOS
from .verdict import judge

DOCS = ROOT / "docs" / "benchmarks"
SO_FAR = CACHE / "results.json"


def install(peers: list[Peer], console: Console) -> Results:
    """Create the environments of the peers. A peer whose environment fails is left out."""
    CACHE.mkdir(exist_ok=True)
    results = Results({**machine.describe(), "our protocol": OURS.protocol}, {}, {})
    for peer in peers:
        why = peer.missing()
        if not why:
            try:
                peer.install()
                results.versions[peer.environment or "django_sockets"] = peer.versions()
            except subprocess.CalledProcessError as exc:
                why = str(exc)
        if why:
            console.print(f"{peer.name} is left out: {why}")
            results.left_out[peer.key] = why
    return results


def turns(names: list[str], peers: list[Peer], runs: int) -> Iterator[tuple[int, str, Peer]]:
    """The order of measurements: runs, then scenarios, then peers; each run rotates the peers."""
    for run in range(runs):
        for name in names:
            scenario = SCENARIOS[name]
            taking_part = [
                peer
                for peer in scenario.peers
                if peer in peers and run < min(scenario.most_runs, peer.most_runs)
            ]
            first = run % max(1, len(taking_part))
            for peer in taking_part[first:] + taking_part[:first]:
                yield run, name, peer


def measure(run: int, name: str, peer: Peer) -> Measurement:
    """Measure one peer in one scenario; an error is recorded as the result."""
    scenario = SCENARIOS[name]
    started = time.monotonic()
    values: dict[str, float] = {}
    failed = ""
    try:
        with running(scenario.primaries) as broker:
            values = scenario.measure(peer, broker)
    except Failed as exc:
        failed = str(exc)
    except Exception as exc:
        failed = f"{type(exc).__name__}: {exc}"
    return Measurement(run, name, peer.key, time.monotonic() - started, values, failed)


def measure_all(
    results: Results, names: list[str], peers: list[Peer], runs: int, console: Console
) -> None:
    """Measure, and write the results after each measurement; Ctrl-C ends it early."""
    todo = list(turns(names, peers, runs))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(todo))
        try:
            for run, name, peer in todo:
                progress.update(bar, description=f"run {run + 1} of {runs}: {name}, {peer.name}")
                measurement = measure(run, name, peer)
                results.measurements.append(measurement)
                if measurement.failed:
                    progress.print(f"{name}, {peer.name}: {measurement.failed}", markup=False)
                results.write(SO_FAR)
                progress.advance(bar)
        except KeyboardInterrupt:
            progress.print("interrupted: the results so far follow")


def save(results: Results) -> None:
    """Write the JSON, the page and the plots of docs/benchmarks."""
    DOCS.mkdir(parents=True, exist_ok=True)
    verdict = [dataclasses.asdict(item) for item in judge(BOUNDS, results)]
    results.write(DOCS / "results.json", verdict=verdict)
    (DOCS / "README.md").write_text(report.page(results))
    plots.draw(results, DOCS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    keys = {peer.key: peer for peer in PEERS}
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="may be repeated")
    parser.add_argument("--peer", action="append", choices=keys, help="may be repeated")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--save", action="store_true", help=f"write {DOCS.relative_to(ROOT)}")
    parser.add_argument(
        "--earlier",
        type=Path,
        help=f"report on these results, such as {SO_FAR.relative_to(ROOT)}; the scenarios of "
        "--only are measured again",
    )
    options = parser.parse_args()
    console = Console()
    earlier = Results.read(options.earlier) if options.earlier else None
    if earlier is not None and not options.only:
        results = earlier
    else:
        names = options.only or list(SCENARIOS)
        needed = {peer for name in names for peer in SCENARIOS[name].peers}
        peers = [keys[key] for key in options.peer or keys if keys[key] in needed]
        results = install(peers, console)
        if earlier is not None:
            others = SCENARIOS.keys() - names
            results.measurements = [m for m in earlier.measurements if m.scenario in others]
            results.versions = {**earlier.versions, **results.versions}
            for key in earlier.left_out.keys() - {peer.key for peer in peers}:
                results.left_out[key] = earlier.left_out[key]
        # The child processes inherit the limit: each socket needs a file descriptor.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        peers = [peer for peer in peers if peer.key not in results.left_out]
        measure_all(results, names, peers, options.runs, console)
    print(report.tables(results))
    if options.save:
        save(results)


if __name__ == "__main__":
    main()
