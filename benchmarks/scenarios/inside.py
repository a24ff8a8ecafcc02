"""Measurements without a server: the programs in `benchmarks/inside`."""

from __future__ import annotations

import dataclasses
import json
import subprocess

from ..brokers import Broker
from ..environments import ROOT, Peer
from ..results import Failed

GIVE_UP_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Program:
    """A module of `benchmarks.inside`, which prints its figures as JSON.

    For a peer with an environment of its own it is the file `<name>_<key>.py`.
    """

    name: str

    def __call__(self, peer: Peer, broker: Broker) -> dict[str, float]:
        command = [str(peer.python), "-m", f"benchmarks.inside.{self.name}", peer.key]
        if peer.environment:
            file = ROOT / "benchmarks" / "inside" / f"{self.name}_{peer.key}.py"
            command = [str(peer.python), str(file)]
        environ = {**peer.environ(), "BENCH_BROKER_URL": broker.url}
        done = subprocess.run(
            command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP_SECONDS
        )
        if done.returncode:
            raise Failed((done.stderr.strip() or "it has failed").splitlines()[-1])
        found: dict[str, float] = json.loads(done.stdout)
        return found
