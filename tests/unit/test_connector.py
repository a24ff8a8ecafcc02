"""What connections to one broker share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from redis.asyncio.connection import SSLConnection

from django_sockets.backends.connector import Connector
from django_sockets.url import BrokerURL


async def test_connections_share_a_tls_context_until_a_certificate_changes(tmp_path: Path) -> None:
    """Making one takes some 30 ms of the event loop, for each server of a cluster, twice."""
    trustme = pytest.importorskip("trustme")
    ca_file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    connector = Connector(BrokerURL.parse(f"rediss://h?tls_ca_file={ca_file}"))

    async def context() -> object:
        connection = await connector._connect({"host": "h", "port": 1}, 3)
        assert isinstance(connection, SSLConnection)
        return connection._connection_arguments()["ssl"]

    first = await context()
    assert await context() is first
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    os.utime(ca_file, ns=(1, 1))
    renewed = await context()
    assert renewed is not first
    assert await context() is renewed
