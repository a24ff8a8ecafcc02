"""A connection of the test kit to a server, for `cache_server`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["CLIENT_NAME", "connect"]

CLIENT_NAME = "django_sockets.testing"
REPLY_TIMEOUT_SECONDS = 5.0


@contextlib.contextmanager
def connect(
    host: str, port: int, username: str | None, password: str | None, ca_file: Path | None
) -> Iterator[redis.Redis]:
    """A client that runs each command once and returns the server's replies unchanged.

    Args:
        ca_file: the certificate of the authority; None for a connection without TLS.
    """
    with redis.Redis(
        host=host,
        port=port,
        username=username,
        password=password,
        ssl=ca_file is not None,
        ssl_ca_certs=str(ca_file) if ca_file is not None else None,
        socket_connect_timeout=REPLY_TIMEOUT_SECONDS,
        socket_timeout=REPLY_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        client_name=CLIENT_NAME,
        protocol=2,
        decode_responses=True,
        encoding_errors="surrogateescape",
    ) as client:
        # Without its callbacks the driver returns the replies unchanged.
        client.response_callbacks.clear()
        yield client
