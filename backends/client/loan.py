"""A loan: a period in which threads use the publishing connection without its event loop.

The order of messages is the order of their headers. The leading thread makes the headers of all
calls and writes them under one lock. `Loan.recall` returns only when no thread is inside that part.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ...broker import NoReplyInTime
from .parser import ConnectionLost, is_push
from .thread_socket import ThreadSocket

__all__ = ["Loan"]

MOST_CALLS = 64
"""The most calls whose commands are written together."""


class _Call:
    """The commands of one thread.

    Attributes:
        count: the number of replies; set when the commands are written.
        replies: those that have come.
        wake: released when the call has ended, or when its thread must lead.
        leads: its thread must write and read for all.
        ended: `replies` or `error` is final; with neither, nothing was sent.
        error: why not all replies have come.
    """

    __slots__ = ("count", "ended", "error", "leads", "make", "replies", "wake")

    def __init__(self, make: Callable[[], tuple[bytes, int]]) -> None:
        self.make = make
        self.count = 0
        self.replies: list[Any] | None = None
        self.error: BaseException | None = None
        self.leads = False
        self.ended = False
        self.wake = threading.Lock()
        self.wake.acquire()

    def end(self, error: BaseException | None = None) -> None:
        self.error = error
        self.ended = True
        if self.wake.locked():
            self.wake.release()

    def result(self) -> list[Any] | None:
        if self.error is not None:
            raise self.error
        return self.replies


class Loan:
    """One period in which threads may use the connection.

    One thread at a time leads: it writes its own commands and those of the threads that wait, reads
    the replies, and then lets the next thread lead.

    Args:
        sock: the socket to use.
        hand_back: called with the loan on the last leading thread of a recalled loan.
        patience_seconds: how long a thread waits for replies.

    Attributes:
        recalled: no thread may begin to write.
        ended: the event loop has the connection back.
        used: whether a thread has written something.
        due: until when the replies that no thread waits for are due (`time.monotonic`).
        problem: why the connection must not be used any more; empty if it may.
    """

    def __init__(
        self, sock: ThreadSocket, hand_back: Callable[[Loan], None], patience_seconds: float
    ) -> None:
        self.socket = sock
        self.recalled = False
        self.ended = False
        self.used = False
        self.due = 0.0
        self.problem = ""
        self._hand_back = hand_back
        self._patience_seconds = patience_seconds
        self._mutex = threading.Lock()
        self._led = False
        self._waiting: deque[_Call] = deque()
        self._written: deque[_Call] = deque()
        self._inside: set[int] = set()

    @property
    def held_here(self) -> bool:
        """Whether the calling thread is inside `exchange`, as in a signal handler."""
        return threading.get_ident() in self._inside

    def exchange(
        self, make: Callable[[], tuple[bytes, int]], timeout_seconds: float
    ) -> list[Any] | None:
        """On any thread: write commands and wait for their replies.

        Args:
            make: returns the commands and their number. It is called when they are next in order,
                perhaps on another thread, and must not raise.
            timeout_seconds: how long the call may take.

        Returns:
            The replies, including errors; None if the connection is recalled and nothing was sent.

        Raises:
            NoReplyInTime: nothing came within `timeout_seconds`.
            ConnectionLost: the commands may have been written, and no reply will come.
        """
        give_up = time.monotonic() + timeout_seconds
        call = _Call(make)
        thread = threading.get_ident()
        self._inside.add(thread)
        try:
            with self._mutex:
                if self.recalled:
                    return None
                if self._led:
                    self._waiting.append(call)
                else:
                    self._led = call.leads = True
            if not call.leads:
                self._wait(call, timeout_seconds)
            if call.leads and not call.ended:
                self._lead(call, give_up)
            return call.result()
        finally:
            self._inside.discard(thread)

    def _wait(self, call: _Call, timeout_seconds: float) -> None:
        """Wait until the call has ended or its thread must lead. Raises NoReplyInTime."""
        try:
            if not call.wake.acquire(timeout=timeout_seconds):
                raise NoReplyInTime
        except BaseException as exc:
            with self._mutex:
                if call in self._waiting:
                    self._waiting.remove(call)
                leads = call.leads and not call.ended
            if isinstance(exc, NoReplyInTime) and (leads or call.ended):
                return  # It was woken at the last moment.
            if leads:
                self._pass_on()
            raise

    def _lead(self, call: _Call, give_up: float) -> None:
        try:
            rest = self._write(call)
            if call.ended:
                return
            deadline = min(self.due, give_up)
            if rest:
                self.socket.send_rest(rest, deadline)
                rest = b""
            while self._written:
                for reply in self.socket.receive(deadline):
                    self._take(reply)
        except NoReplyInTime:
            if not rest and give_up < self.due:
                # The caller's own limit: the event loop waits for the replies from now on.
                self.recalled = True
                raise
            self._break(ConnectionLost(f"no reply within {self._patience_seconds:g} s"))
        except ConnectionLost as exc:
            self._break(exc)
        except BaseException as exc:
            # After a KeyboardInterrupt, for example, no thread would read the replies.
            self._break(ConnectionLost(f"interrupted by {type(exc).__name__}"))
            raise
        finally:
            self._pass_on()

    def _write(self, leader: _Call) -> bytes:
        """Write the commands of all calls; returns the bytes for which there was no room."""
        with self._mutex:
            calls = [leader]
            while self._waiting and len(calls) < MOST_CALLS:
                calls.append(self._waiting.popleft())
            if self.recalled or not self.socket.idle:
                self.recalled = True
                for call in calls:
                    call.end()
                return b""
            self.used = True
            self.due = time.monotonic() + self._patience_seconds
            data = []
            self._written.extend(calls)  # First, so that an exception ends all of them.
            for call in calls:
                packed, call.count = call.make()
                data.append(packed)
            written = b"".join(data)
            return written[self.socket.send(written) :]

    def _take(self, reply: Any) -> None:
        if is_push(reply):
            return
        if not self._written:
            raise ConnectionLost("the server sent a reply without a request")
        call = self._written[0]
        if call.replies is None:
            call.replies = [reply]
        else:
            call.replies.append(reply)
        if len(call.replies) == call.count:
            self._written.popleft()
            call.end()

    def _break(self, error: ConnectionLost) -> None:
        """The connection cannot be used any more: end the calls that wait for replies."""
        self.problem = self.problem or str(error)
        self.recalled = True
        self.fail(self.problem, error)

    def _pass_on(self) -> None:
        """Let the next thread lead; after a recall, let all leave and hand the connection back."""
        with self._mutex:
            if self.recalled:
                while self._waiting:
                    self._waiting.popleft().end()
            elif self._waiting:
                following = self._waiting.popleft()
                following.leads = True
                following.wake.release()
                return
            self._led = False
            hand_back = self.recalled and not self.ended
            self.ended = self.ended or hand_back
        if hand_back:
            self._hand_back(self)

    # On the event loop

    def recall(self) -> bool:
        """Let no thread write any more; True if none waits for a reply either.

        Otherwise `hand_back` is called when the last thread leaves.
        """
        with self._mutex:
            self.recalled = True
            free = not self._led and not self.ended
            self.ended = self.ended or free
            return free

    @property
    def unanswered(self) -> int:
        """After the end: the number of replies that are still due; 0 in nearly all cases."""
        return sum(call.count - len(call.replies or ()) for call in self._written)

    def answer(self, replies: Sequence[Any]) -> None:
        """After the end: take the replies that were still due."""
        for reply in replies:
            self._take(reply)

    def fail(self, problem: str, cause: BaseException | None = None) -> None:
        """End the calls that wait for replies as lost."""
        while self._written:
            lost = ConnectionLost(problem)
            lost.__cause__ = cause if cause is None else cause.__cause__
            self._written.popleft().end(lost)
