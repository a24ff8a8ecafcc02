"""The socket of a connection, for threads that read and write without the event loop."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from ...broker import NoReplyInTime
from .parser import ConnectionLost

__all__ = ["Lendable", "ThreadSocket"]

RECEIVE_BYTES = 64 * 1024


class Lendable(Protocol):
    """The part of a connection that lending needs."""

    def thread_socket(self) -> ThreadSocket | None:
        """A socket for threads; None if this connection cannot be lent, as with TLS."""

    def stop_reading(self) -> bool:
        """Stop reading; False if received bytes are not parsed or written ones not sent."""

    def read_again(self) -> None:
        """Undo `stop_reading`."""


class ThreadSocket:
    """A second descriptor of a connection's socket, for use outside the event loop.

    With a descriptor of its own, a thread never reads from a descriptor that the event loop has
    closed and the system has given to another connection.

    Args:
        sock: non-blocking; closed by `close`.
        parse: takes received bytes and returns the complete replies; raises ConnectionLost.
    """

    def __init__(self, sock: socket.socket, parse: Callable[[bytes], list[Any]]) -> None:
        self._socket = sock
        self._parse = parse
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    @property
    def idle(self) -> bool:
        """False if something has arrived: the end of the connection, or an unexpected reply."""
        return not self._readable.poll(0)

    def send(self, data: bytes) -> int:
        """Write without waiting; returns the number of bytes written.

        Raises:
            ConnectionLost: the connection has ended.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise ConnectionLost(f"connection lost: {exc}") from exc

    def send_rest(self, data: bytes, deadline: float) -> None:
        """Write all of the data, waiting for room until the deadline (`time.monotonic`).

        Raises:
            ConnectionLost: the connection has ended.
            NoReplyInTime: the deadline has passed.
        """
        rest = memoryview(data)
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        while rest:
            if not writable.poll(_milliseconds_until(deadline)):
                raise NoReplyInTime
            rest = rest[self.send(bytes(rest)) :]

    def receive(self, deadline: float) -> list[Any]:
        """Wait for bytes until the deadline; returns the replies that are complete.

        Raises:
            ConnectionLost: the connection has ended.
            NoReplyInTime: the deadline has passed.
        """
        if not self._readable.poll(_milliseconds_until(deadline)):
            raise NoReplyInTime
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as exc:
            raise ConnectionLost(f"connection lost: {exc}") from exc
        if not data:
            raise ConnectionLost("connection closed by the server")
        return self._parse(data)

    def shut_down(self) -> None:
        """End the connection; a thread that waits in `receive` gets ConnectionLost."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the descriptor. No thread may use it any more."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()


def _milliseconds_until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic()) * 1000
