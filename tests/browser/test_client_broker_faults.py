"""The browser client in Chromium, through the failures of its server's broker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.clusters import CacheCluster
from django_sockets.testing.servers import CacheServer
from support.client_pages import in_order_or_gap, wait_for
from support.client_server import PING_SECONDS, Publisher, client_app

pytestmark = pytest.mark.timeout(300 if PING_SECONDS == 2 else 900)


def test_a_broker_that_is_killed_costs_a_gap_and_no_connection(
    open_page: Any, folder: Path, fresh_valkey_server: CacheServer, windows: Any
) -> None:
    broker = fresh_valkey_server.url
    publisher = Publisher(broker)
    with client_app(folder, broker) as running, windows:
        page = open_page(running.port)
        with publisher.steadily():
            wait_for(page, "shown.length > 20")
            fresh_valkey_server.kill()
            fresh_valkey_server.start()
            wait_for(page, "shown.includes('gap') && kept.includes('gap')")
            last = publisher.last
            wait_for(page, f"shown.at(-1) > {last} && kept.at(-1) > {last}")
        in_order_or_gap(page.evaluate("shown"))
        # Valkey has kept nothing on a disk.
        in_order_or_gap(page.evaluate("kept"))
        assert page.evaluate("states.length") == 1


def test_a_failover_of_a_cluster_costs_a_gap_at_most_and_no_connection(
    open_page: Any, folder: Path, restored_valkey_cluster: CacheCluster, windows: Any
) -> None:
    cluster = restored_valkey_cluster
    broker = f"{cluster.url}?prefix=client-{os.getpid()}"
    publisher = Publisher(broker)
    with client_app(folder, broker) as running, windows:
        page = open_page(running.port)
        with publisher.steadily():
            wait_for(page, "shown.length > 20 && kept.length > 20")
            # In turn, the server that has `kept:1` and the one that has `room:1` are replaced.
            for name, is_orderly in (("kept:1", True), ("room:1", False)):
                node = cluster.primary_of(cluster.slot_of(f"{{{name}}}"))
                if is_orderly:
                    cluster.failover(cluster.replicas_of(node)[0])
                else:
                    node.kill()
                    cluster.wait_promoted(node)
                last = publisher.last
                wait_for(page, f"shown.at(-1) > {last} && kept.at(-1) > {last}")
        publisher.publish(100)
        wait_for(page, f"shown.at(-1) === {publisher.last} && kept.at(-1) === {publisher.last}")
        for numbers in ("shown", "kept"):
            found = page.evaluate(numbers)
            in_order_or_gap(found)
            assert found.count("gap") >= 1, numbers
        assert page.evaluate("states.length") == 1
