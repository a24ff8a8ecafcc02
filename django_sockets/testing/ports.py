"""Free loopback ports for servers that stop and start again on the same port.

Used by the other modules of `testing`.
"""

from __future__ import annotations

import errno
import secrets
import socket

__all__ = ["HOST", "bind_free_port", "free_port"]

HOST = "127.0.0.1"

# These are below the ephemeral ports of Linux (from 32768) and macOS (from 49152): while a server
# is down, no outgoing connection may get its port. A client that reconnects to an ephemeral port
# can even be connected to itself (TCP simultaneous open).
_PORTS = range(15_000, 32_000)
_ATTEMPTS = 100


def bind_free_port() -> socket.socket:
    """A TCP socket bound to a free port of the loopback interface, not listening yet.

    Raises:
        OSError: no port was free in 100 attempts.
    """
    for _ in range(_ATTEMPTS):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.bind((HOST, secrets.choice(_PORTS)))
        except OSError as exc:
            listener.close()
            if exc.errno != errno.EADDRINUSE:
                raise
        else:
            # The option is set after the bind, so that the bind only succeeds on a free port. It
            # allows the server to bind the port later.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return listener
    raise OSError(errno.EADDRINUSE, f"no free port in {_ATTEMPTS} attempts")


def free_port() -> int:
    """A port that was free just now. Another program may take it before the caller binds it."""
    with bind_free_port() as listener:
        port: int = listener.getsockname()[1]
        return port
