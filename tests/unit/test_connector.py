"""All connections of one broker share settings and credentials."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from django_sockets.backends.client.connector import Connector
from django_sockets.url import BrokerURL


def test_connections_share_a_tls_context_until_a_certificate_changes(tmp_path: Path) -> None:
    """Making one blocks the event loop for some 30 ms, twice for each server of a cluster."""
    trustme = pytest.importorskip("trustme")
    ca_file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    connector = Connector(BrokerURL.parse(f"rediss://h?tls_ca_file={ca_file}"))

    first = connector._tls_context()
    assert connector._tls_context() is first
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    os.utime(ca_file, ns=(1, 1))
    renewed = connector._tls_context()
    assert renewed is not first
    assert connector._tls_context() is renewed
