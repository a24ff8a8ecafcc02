"""A certificate for servers with TLS."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], ssl.SSLContext]:
    """The server's options and the client's context."""
    folder: Path = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    client = ssl.create_default_context()
    authority.configure_trust(client)
    path = str(folder / "both.pem")
    return {"ssl_certfile": path, "ssl_keyfile": path}, client
