"""Many clients come back after a restart: not all at once, and none misses anything unnoticed."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from django_sockets.broadcaster import Broadcaster
from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.client_app import configuration
from support.shop_process import Server, serving

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = int(os.environ.get("DJANGO_SOCKETS_STORM_CLIENTS", "1000"))
SLICE_MS = 500
"""A tenth of the time within which clients come back from a restart."""

pytestmark = [pytest.mark.load, pytest.mark.timeout(180)]


@contextmanager
def clients(port: int) -> Iterator[subprocess.Popen[str]]:
    command = ["node", "tests/storm.js", f"ws://127.0.0.1:{port}/ws/", str(CLIENTS)]
    with subprocess.Popen(
        command, cwd=ROOT / "client", stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    text = process.stdout.readline()
    assert text, "node has ended"
    found: dict[str, Any] = json.loads(text)
    return found


@contextmanager
def server(folder: Path, broker: str, port: int) -> Iterator[Server]:
    more = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT))),
        "CLIENT_BROKER": broker,
        # The clients spread themselves; a long drain would do it for them.
        "DJANGO_SOCKETS_DRAIN_SECONDS": "1",
    }
    own = "django_sockets.servers.uvicorn:WebSocketProtocol"
    command = [sys.executable, "-m", "uvicorn", "support.client_app:application", "--ws", own]
    command += ["--port", str(port), "--backlog", "4096", "--log-level", "warning"]
    with serving(command, port, folder / "server.log", **more) as running:
        yield running


def scripts_run(broker: CacheServer) -> int:
    """The scripts that the broker has run: one for each read of a history and each publish."""
    stats = broker.execute("INFO", "commandstats")
    return sum(map(int, re.findall(r"cmdstat_eval(?:sha)?:calls=(\d+)", stats)))


def test_clients_come_back_from_a_restart_one_after_the_other(
    node: Any, fresh_valkey_server: CacheServer, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CLIENTS + 500:
        pytest.skip(f"{CLIENTS} clients need more open files than {hard}")
    broker = fresh_valkey_server.url
    broadcaster = Broadcaster(config=configuration(broker))
    port = free_port()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, CLIENTS + 1000), hard))
    try:
        with clients(port) as process:
            with server(tmp_path, broker, port) as first:
                assert len(line(process)["times"]) == CLIENTS
                for number in range(10):
                    broadcaster.broadcast("kept:1", {"n": number})
                first.end()
            broadcaster.broadcast("kept:1", {"n": 10})
            scripts = scripts_run(fresh_valkey_server)
            with server(tmp_path, broker, port):
                again = line(process)
                reads = scripts_run(fresh_valkey_server) - scripts
                broadcaster.broadcast("kept:1", {"n": 11, "last": True})
                assert line(process) == {"whole": CLIENTS, "gaps": 0}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(again["times"]) == len(again["planned"]) == CLIENTS
    slices = Counter(time // SLICE_MS for time in again["planned"])
    print(f"\n{CLIENTS} clients, first attempts by {SLICE_MS} ms: {dict(sorted(slices.items()))}")
    print(f"the last one was subscribed after {max(again['times'])} ms")
    print(f"the server has read the history {reads} times")
    assert max(slices.values()) < CLIENTS / 5, "they came in a wave"
    assert 1 <= reads <= 3, "each client has cost a read of the history"
