"""Lending the publishing connection to threads that wait for their calls.

A plain call would otherwise switch threads twice, to the event loop and back, which costs more than
the publish itself. While nothing is queued, the event loop lends its connection: it stops reading,
and threads write their commands and read the replies themselves (`loan`). The event loop recalls
the loan when it has something to write, and lends again when that has been answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .loan import Loan
from .thread_socket import Lendable, ThreadSocket

__all__ = ["Lending"]


class Lending:
    """The loans of one pipeline. Its methods belong to the event loop.

    Args:
        returned: called when the event loop may use the connection again, with the loan.
        patience_seconds: see `Loan`.

    Attributes:
        loan: the present loan, until `returned` is called. Threads may read it.
        wanted: whether a thread would use the connection.
    """

    def __init__(self, returned: Callable[[Loan], None], patience_seconds: float) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._returned = returned
        self._patience_seconds = patience_seconds
        self._connection: Lendable | None = None
        self._socket: ThreadSocket | None = None
        self.loan: Loan | None = None
        self.wanted = False

    def lend(self, connection: Lendable) -> None:
        """Lend a connection on which no request is queued or waits for a reply."""
        self._loop = asyncio.get_running_loop()
        if self._connection is not connection:
            self._connection = connection
            self._socket = connection.thread_socket()
        if self._socket is None:
            self.wanted = False
        elif connection.stop_reading():
            self.wanted = False
            self.loan = Loan(self._socket, self._hand_back, self._patience_seconds)

    def recall(self) -> None:
        """Take the connection back; `returned` follows soon."""
        loan = self.loan
        if loan is not None and not loan.recalled and loan.recall():
            self._end(loan)

    def lost(self, reason: str) -> None:
        """The connection was aborted: no thread may use its socket any longer."""
        loan, sock = self.loan, self._socket
        self.loan = self._connection = self._socket = None
        if sock is None:
            return
        if loan is not None:
            loan.problem = loan.problem or reason
        sock.shut_down()
        if loan is None or loan.recall() or loan.ended:
            self._close(loan, sock)

    @staticmethod
    def _close(loan: Loan | None, sock: ThreadSocket) -> None:
        if loan is not None:
            loan.fail(loan.problem)
        sock.close()

    def _hand_back(self, loan: Loan) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._end, loan)
        except RuntimeError:  # The event loop is closed.
            self._close(loan, loan.socket)

    def _end(self, loan: Loan) -> None:
        if loan is not self.loan or self._connection is None:
            self._close(loan, loan.socket)  # The connection was lost meanwhile.
            return
        self._connection.read_again()
        # The end of the connection may have arrived during the loan. The event loop reads before
        # the second of these callbacks, so that it does not write to a connection that has ended.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._settle, loan)

    def _settle(self, loan: Loan) -> None:
        if loan is self.loan:
            self.loan = None
            self.wanted = self.wanted or loan.used
            self._returned(loan)
