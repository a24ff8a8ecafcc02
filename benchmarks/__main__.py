"""`make bench`; BENCH_ARGS="--only fan-out --runs 1" runs a part."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
from pathlib import Path

from rich.progress import track

from django_sockets.testing.servers import ValkeyServer

from .environments import PEERS, Peer
from .scenarios import SCENARIOS, Result

Results = dict[str, dict[str, list[Result]]]
DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"


def measure(names: list[str], peers: list[Peer], runs: int) -> Results:
    """Run by run, and within a run scenario by scenario, the peers one after the other."""
    results: Results = {name: {peer.name: [] for peer in peers} for name in names}
    todo = [(name, peer) for _ in range(runs) for name in names for peer in peers]
    for name, peer in track(todo, description="measuring"):
        with ValkeyServer(config={"client-output-buffer-limit": "pubsub 0 0 0"}) as broker:
            results[name][peer.name].append(SCENARIOS[name](peer, broker.port))
    return results


def table(results: Results) -> str:
    """Medians, and the spread from the lowest to the highest."""
    lines = []
    for scenario, by_peer in results.items():
        measures = list(next(iter(by_peer.values()))[0])
        lines += ["", f"| {scenario} | " + " | ".join(measures) + " |"]
        lines.append("|---" * (len(measures) + 1) + "|")
        for peer, runs in by_peer.items():
            cells = []
            for measured in measures:
                values = [run[measured] for run in runs]
                median = statistics.median(values)
                cells.append(f"{median:,.1f} ({min(values):,.1f} to {max(values):,.1f})")
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="may stand twice")
    parser.add_argument("--peer", action="append", choices=[peer.module for peer in PEERS])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--save", action="store_true", help=f"write {DOCS}/results.json")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if not options.peer or peer.module in options.peer]
    for peer in peers:
        peer.install()
    # Its processes inherit this: each socket is a descriptor.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results = measure(options.only or list(SCENARIOS), peers, options.runs)
    print(table(results))
    if options.save:
        machine = f"{platform.platform()}, Python {platform.python_version()}"
        DOCS.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine, "results": results}, indent=1)
        (DOCS / "results.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
