"""Prometheus reads the same numbers that the hubs have, from any thread, with bounded labels."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest, push_to_gateway
from prometheus_client.parser import text_string_to_metric_families

from django_sockets import local_hubs, open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.observability import HubCollector, collect_metrics, start_metrics_server
from django_sockets.observability.definitions import METRICS, NAMESPACE
from django_sockets.observability.measurements import MOST_SERIES, Measurements, code_label
from django_sockets.observer import HookCalled, Published, seam
from django_sockets.runtime import close_shared_hubs
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient
from support.metrics import Metrics, scraped
from support.presence_world import LEASE, ROOM, world_of

_numbers = itertools.count()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture(autouse=True)
def collector(registry: CollectorRegistry) -> Iterator[HubCollector]:
    collector = collect_metrics(registry)
    yield collector
    collector.close()
    assert seam.observer is None


@pytest.fixture
def url() -> str:
    return f"memory://prometheus-{next(_numbers)}"


class Room(BaseSocketServer):
    async def connect(self) -> None:
        await self.async_subscribe("secret-room")
        await self.async_send("ready")

    async def receive(self, data: Any) -> None:
        await self.async_close(data)


def now(registry: CollectorRegistry) -> Metrics:
    return scraped(generate_latest(registry).decode())


async def test_a_scrape_on_another_thread_has_what_happened_here(
    registry: CollectorRegistry, url: str
) -> None:
    app = type("Room", (Room,), {"config": url}).as_asgi  # type: ignore[attr-defined]
    before = await asyncio.to_thread(now, registry)
    async with SocketClient(app) as one, SocketClient(app) as other:
        for client in (one, other):
            assert await client.receive_json() == "ready"
        await asyncio.to_thread(Broadcaster(url).broadcast, "secret-room", "text")
        for client in (one, other):
            assert await client.receive_json() == "text"
        during = await asyncio.to_thread(now, registry)
        for client in (one, other):
            await client.send_json(4401)
            assert await client.receive_close() == 4401
    await close_shared_hubs()
    after = await asyncio.to_thread(now, registry)
    grown = after.since(before)
    assert grown("messages_published_total") == 1
    assert grown("messages_delivered_total") == 2
    assert during.since(before)("open_sockets") == 2
    assert grown("open_sockets") == 0
    assert grown("handshakes_total", outcome="accepted", status="101") == 2
    assert grown("connections_closed_total", code="4401") == 2
    assert grown("hook_calls_total", hook="connect", outcome="ok") == 2
    assert grown("hook_seconds_count", hook="connect") == 2
    assert grown("publish_seconds_count", outcome="ok") == 1
    assert grown("payload_bytes_sum") == len('"text"')
    assert grown("broker_lag_seconds_count") == 1
    # The hubs have ended, and what they have counted is still there.
    assert not [hub for hub in local_hubs() if hub.loop is asyncio.get_running_loop()]


def test_the_text_follows_the_conventions_of_prometheus(
    registry: CollectorRegistry, missing: Callable[[str], NoReturn]
) -> None:
    """`promtool check metrics` decides."""
    Broadcaster("memory://conventions").broadcast("room", 1)
    promtool = shutil.which("promtool") or missing("promtool of Debian's package prometheus")
    text = generate_latest(registry)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert b"django_sockets_messages_published_total" in text


@pytest.mark.parametrize("name", METRICS)
def test_names_and_units_are_in_order(name: str) -> None:
    definition = METRICS[name]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
    assert not name.endswith("_total")
    assert definition.help.endswith(".")
    assert (definition.kind == "histogram") == name.endswith(("_seconds", "_bytes")) or (
        name == "queued_bytes"
    )
    assert list(definition.buckets) == sorted(definition.buckets)


def test_every_metric_is_in_the_text_from_the_start(registry: CollectorRegistry) -> None:
    """A query for a metric that has no value yet must at least find its name."""
    text = generate_latest(registry).decode()
    for definition in METRICS.values():
        assert f"# TYPE {definition.full_name} {definition.kind}" in text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names == {f"{NAMESPACE}_{name}" for name in METRICS}


async def test_counters_begin_at_zero_and_not_with_their_first_event(
    registry: CollectorRegistry,
) -> None:
    """An alert on `increase()` would miss the first lost connection."""
    async with open_hub("redis://127.0.0.1:1"):
        shown = {
            (name, *labels.values()): value
            for name, labels, value in now(registry).series
            if name.endswith("_total")
        }
    for series in [
        ("links_lost_total", "redis", "subscribing"),
        ("connect_errors_total", "redis", "publishing"),
        ("connections_closed_total", "1013"),
        ("connections_closed_total", "1011"),
        ("slow_consumers_total",),
        ("messages_received_total", "redis"),
        ("handshakes_total", "refused", "403"),
    ]:
        assert shown[(f"{NAMESPACE}_{series[0]}", *series[1:])] == 0


async def test_the_presence_of_channels_is_counted(registry: CollectorRegistry) -> None:
    """An operator sees whether members of dead processes are removed."""
    before = now(registry)
    async with world_of(2) as world:
        here, dying = world.processes
        await dying.hub.track(ROOM, "ann")
        await world.move(0)
        joined = now(registry).since(before)
        assert joined("presence_members", broker="memory") == 1
        assert joined("presence_watched_channels", broker="memory") == 2
        assert joined("presence_changes_total", broker="memory", change="joined") == 2
        assert joined("presence_changes_total", change="left") == 0
        await dying.crash()
        await world.move(2 * LEASE)
        assert here.view.told == ["+ann", "-ann"]
        reaped = now(registry).since(before)
        assert reaped("presence_changes_total", broker="memory", change="left") == 1
        assert reaped("presence_entries_reaped_total", broker="memory") == 1
        await here.hub.track(ROOM, "bob")
        await world.move(LEASE)
        held = now(registry).since(before)
        assert held("presence_lease_renewals_total", broker="memory") > 0
        assert held("presence_leases_missed_total") == 0
        world.end_lease(here)
        await world.move(LEASE)
        assert now(registry).since(before)("presence_leases_missed_total", broker="memory") == 1


def test_a_second_call_counts_nothing_twice(
    registry: CollectorRegistry, collector: HubCollector
) -> None:
    assert collect_metrics(registry) is collector
    before = now(registry)
    Broadcaster("memory://twice").broadcast("room", 1)
    grown = now(registry).since(before)
    assert grown("messages_published_total") == grown("publish_seconds_count") == 1


# Labels


async def test_no_label_has_a_channel_or_the_text_of_a_client(
    registry: CollectorRegistry, url: str
) -> None:
    app = type("Room", (Room,), {"config": url}).as_asgi  # type: ignore[attr-defined]
    async with SocketClient(app, "/secret-path?token=secret-token") as client:
        assert await client.receive_json() == "ready"
        await asyncio.to_thread(Broadcaster(url).broadcast, "secret-room", "secret-text")
        assert await client.receive_json() == "secret-text"
    assert "secret" not in generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (1000, "1000"), (1001, "1001"), (1006, "1006"), (1013, "1013"), (4401, "4401"),
        (4408, "4408"), (3000, "3xxx"), (3999, "3xxx"), (4999, "4xxx"), (4123, "4xxx"),
        (0, "other"), (-1, "other"), (1010, "other"), (5000, "other"), (2**40, "other"),
    ],
)  # fmt: skip
def test_a_client_cannot_make_new_series_with_its_close_code(code: int, label: str) -> None:
    assert code_label(code) == label


def test_the_number_of_series_is_bounded() -> None:
    """An application may make a class for each customer."""
    measurements = Measurements()
    for number in range(MOST_SERIES + 500):
        made = type(f"Made{number}", (), {})
        measurements.hook_called(HookCalled(socket=made, hook="connect", seconds=0.1, outcome="ok"))
    counts = measurements.counts("hook_calls")
    assert len(counts) == MOST_SERIES + 1
    assert counts[("other", "other", "other")] == 500
    assert sum(counts.values()) == MOST_SERIES + 500


def test_values_go_into_the_bucket_whose_upper_bound_they_do_not_exceed(
    registry: CollectorRegistry, collector: HubCollector
) -> None:
    """Prometheus' `le` means less than or equal."""
    for seconds in (0.0, 0.0005, 0.00051, 10.0, 10.1):
        collector.measurements.published(
            Published(broker="redis", channels=1, payload_bytes=1, seconds=seconds, outcome="ok")
        )
    metrics = now(registry)
    labels = {"broker": "redis", "outcome": "ok"}
    assert metrics("publish_seconds_bucket", le="0.0005", **labels) == 2
    assert metrics("publish_seconds_bucket", le="0.001", **labels) == 3
    assert metrics("publish_seconds_bucket", le="10.0", **labels) == 4
    assert metrics("publish_seconds_bucket", le="+Inf", **labels) == 5
    assert metrics("publish_seconds_count", **labels) == 5
    assert metrics("publish_seconds_sum", **labels) == pytest.approx(20.10101)


# Several processes


def test_each_process_takes_a_port_of_its_own(registry: CollectorRegistry) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        used = taken.getsockname()[1]
        port = start_metrics_server([used, 0], registry=registry)
        assert port != used
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert scraped(answer.read().decode()).names
        with pytest.raises(OSError, match="in use"):
            start_metrics_server([used], registry=registry)


WORKER = """
import os, sys, warnings
from django_sockets.broadcaster import Broadcaster
from django_sockets.observability import collect_metrics, metrics_text
from django_sockets.observability.multiprocess import write_now
warnings.simplefilter("ignore")  # Python 3.12 warns of a fork in a process with threads.

collect_metrics()
Broadcaster("memory://parent").broadcast("room", 1)
count = int(sys.argv[1])
child = os.fork()
for _ in range(count if child else 10 * count):
    Broadcaster("memory://workers").broadcast("room", "x" * 100)
if not child:
    write_now()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(metrics_text()[0].decode())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_multiprocess_mode_any_process_answers_for_all(tmp_path: Any) -> None:
    """The children of a pre-forking server write to files, and one of them answers the scrape."""
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
    }
    for count in (2, 3):
        ended = subprocess.run(
            [sys.executable, "-c", WORKER, str(count)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
        assert ended.returncode == 0, ended.stderr
    metrics = scraped(ended.stdout)
    published = (1 + 2 + 20) + (1 + 3 + 30)
    assert metrics("messages_published_total") == published
    assert metrics("publish_seconds_count") == published
    assert metrics("publish_seconds_bucket", le="+Inf") == published
    assert metrics("payload_bytes_bucket", le="64.0") == 2  # Only "1" is so short.
    assert metrics("payload_bytes_sum") == 2 * 1 + (published - 2) * 102


async def test_a_short_task_can_push_its_numbers(registry: CollectorRegistry) -> None:
    async with open_hub("memory://pushed") as hub:
        await hub.publish("room", b"1")
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
        received.set_result(head + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(gateway, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.to_thread(
            push_to_gateway, f"127.0.0.1:{port}", job="report", registry=registry
        )
        text = (await received).decode()
    assert text.startswith("PUT /metrics/job/report ")
    assert '\ndjango_sockets_messages_published_total{broker="memory"}' in text


# Lazy


def test_the_library_does_not_load_any_of_this() -> None:
    """The time of the import is a promise of the benchmarks."""
    code = """
import sys
import django_sockets.sockets, django_sockets.broadcaster
print([name for name in sys.modules if "prometheus" in name or "observability" in name])
from django_sockets.observability import Observer, add_observer
print([name for name in sys.modules if "prometheus" in name or name == "django"])
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output == "[]\n[]\n"


def test_a_missing_package_names_the_extra() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
from django_sockets.errors import ConfigurationError
try:
    from django_sockets.observability import collect_metrics
except ConfigurationError as exc:
    print(exc)
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "django-sockets[prometheus]" in output
