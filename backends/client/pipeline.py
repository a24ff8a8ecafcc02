"""The publishing connection: commands of many concurrent callers, in the order of the calls.

No request is ever sent twice. A request that was written and not answered ends as unknown.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from ...errors import BrokerClosed, ConnectError
from ...log import LogThrottle
from ...loops import OfOneLoop
from ...url import BrokerURL
from .connection import Connection, ConnectionLost, Opener
from .deadlines import LARGE_BYTES, first_of, ignore_result, keepalive
from .identity import PRIMARY, Identity, IdentityCheck
from .lending import Lending
from .link_reports import LinkReports, PublishingReports
from .loan import Loan
from .parser import ReplyError, is_push, pack
from .supervision import Supervisor

__all__ = ["NotSent", "OutcomeUnknown", "PartlyRefused", "Pipeline", "Recalled"]

logger = logging.getLogger("django_sockets")

SLOWEST_BYTES_PER_SECOND = 1024 * 1024
"""A deadline is extended for the bytes in flight at this rate."""


class NotSent(Exception):
    """The request was certainly not executed."""


class Recalled(NotSent):
    """The request waited for a connection, and the router took it back."""


class OutcomeUnknown(Exception):
    """The request was written and no reply came."""


class PartlyRefused(OutcomeUnknown):
    """The server answered with an error, and may have done a part before.

    Args:
        what: the beginning of the message.

    Attributes:
        error: the reply.
    """

    def __init__(self, error: ReplyError, what: str = "the server answered") -> None:
        super().__init__(f"{what}: {error}")
        self.error = error


class _Request(msgspec.Struct, gc=False, eq=False):
    """Commands of one call. Untracked by the garbage collector, because thousands may wait."""

    packed: bytes
    size_bytes: int
    expected: int
    future: asyncio.Future[list[Any]]
    deadline: float
    replies: list[Any] | None = None

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Pipeline(OfOneLoop):
    """One publishing connection to one server, opened by the first call and again after a loss.

    Args:
        open_connection: connects; raises ConnectError.
        on_replica: called when the server has become a replica, which accepts messages but delivers
            them to its own subscribers only. It must call `reset`. With None, the role is not
            checked.
        preamble: commands that are written first on each connection. Their errors are logged.
        reports: for another purpose than publishing.

    Attributes:
        lending: lends the connection to threads.
    """

    def __init__(
        self,
        url: BrokerURL,
        open_connection: Opener,
        *,
        on_replica: Callable[[str], None] | None = None,
        preamble: Sequence[tuple[bytes, ...]] = (),
        reports: LinkReports | None = None,
    ) -> None:
        self._url = url
        self._preamble = preamble
        self._open_connection = open_connection
        self._queued: deque[_Request] = deque()
        self._written: deque[_Request] = deque()
        self._connection: Connection | None = None
        self._successor: Connection | None = None
        self._drained = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._flush_due = False
        self._abort_reason = ""
        self._timer: asyncio.TimerHandle | None = None
        self._patience_seconds = url.options.publish_timeout_seconds
        self.lending = Lending(self._returned, self._patience_seconds)
        self._on_replica = on_replica
        self._identity_check = IdentityCheck()
        self._identified_at = -math.inf
        self._supervisor = Supervisor(url)
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._reports = PublishingReports(url) if reports is None else reports
        self._closed = False

    @property
    def connection(self) -> Connection | None:
        """The present connection."""
        return self._connection

    @property
    def identity(self) -> Identity:
        """The server at the other end, as far as it is known."""
        return Identity() if self._connection is None else self._connection.identity

    @property
    def newest_identity(self) -> Identity:
        """The identity of the successor, if there is one, else of the present connection."""
        return self.identity if self._successor is None else self._successor.identity

    @property
    def busy(self) -> bool:
        """Whether a request is queued or waits for its reply."""
        return bool(self._queued or self._written) or self.lending.loan is not None

    @property
    def waiting(self) -> bool:
        """Whether a request waits for a connection."""
        return self._connection is None and bool(self._queued)

    def submit(
        self, commands: Sequence[tuple[bytes, ...]], *, check_identity: bool = False
    ) -> asyncio.Future[list[Any]]:
        """Send 1..n commands in one write; the future gets their replies, including errors.

        Requests are written in the order of the calls.

        Args:
            check_identity: also ask the server for its role in the same write; those replies follow
                the others.

        The future raises:
            NotSent: no connection could be made; its `__cause__` is the reason.
            OutcomeUnknown: the connection was lost, or no reply came in `publish_timeout_seconds`.

        Raises:
            BrokerClosed: after `aclose`.
        """
        if self._closed:
            raise BrokerClosed(self._url)
        if check_identity:
            return self._submit_with_identity_check(commands)
        packed = [pack(command) for command in commands]
        return self._enqueue(packed[0] if len(packed) == 1 else b"".join(packed), len(packed))

    def _submit_with_identity_check(
        self, commands: Sequence[tuple[bytes, ...]]
    ) -> asyncio.Future[list[Any]]:
        connection = self._connection
        if (
            self._on_replica is None or connection is None
        ):  # A new connection has just been checked.
            return self.submit(commands)
        self._identified_at = self._loop.time()
        questions = self._identity_check.commands(connection.identity)
        answer = self.submit([*commands, *questions])
        answer.add_done_callback(partial(self._learn, connection, questions))
        return answer

    def _learn(
        self,
        connection: Connection,
        questions: Sequence[tuple[bytes, ...]],
        answer: asyncio.Future[list[Any]],
    ) -> None:
        if (
            answer.cancelled()
            or answer.exception() is not None
            or self._connection is not connection
        ):
            return
        replies = answer.result()
        last = replies[len(replies) - len(questions) :]
        connection.identity = self._identity_check.updated(connection.identity, questions, last)
        if connection.identity.role not in (PRIMARY, "") and self._on_replica is not None:
            self._on_replica("the server is a replica now")

    def _enqueue(self, packed: bytes, count: int = 1) -> asyncio.Future[list[Any]]:
        loop = self._loop
        size = len(packed)
        deadline = loop.time() + self._patience_seconds + size / SLOWEST_BYTES_PER_SECOND
        request = _Request(packed, size, count, loop.create_future(), deadline)
        self._queued.append(request)
        self._expire_at(deadline)
        if self._connection is not None:
            if self.lending.loan is not None:
                self.lending.recall()
            elif not self._flush_due:
                self._flush_due = True
                loop.call_soon(self._flush)
        elif self._task is None:
            self._task = loop.create_task(self._run(), name="django_sockets publisher")
        return request.future

    def _expire_at(self, deadline: float) -> None:
        if self._timer is not None and deadline < self._timer.when():
            self._timer.cancel()  # It was set for a large request, which may have been answered.
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)

    def _returned(self, loan: Loan) -> None:
        """The event loop has its connection back from the threads."""
        if loan.problem:
            self.reset(loan.problem)
            return
        if loan.unanswered:
            # A thread gave up waiting; the replies must still be matched with its commands.
            answer: asyncio.Future[list[Any]] = self._loop.create_future()
            answer.add_done_callback(partial(self._answer, loan))
            due_in_seconds = loan.due - time.monotonic()
            deadline = self._loop.time() + due_in_seconds
            self._written.append(_Request(b"", 0, loan.unanswered, answer, deadline))
            self._expire_at(deadline)
        self._flush()
        if self._successor is not None and not self._written:
            self._drained.set()

    @staticmethod
    def _answer(loan: Loan, answer: asyncio.Future[list[Any]]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            loan.fail(str(answer.exception()))
        else:
            loan.answer(answer.result())

    def _flush(self) -> None:
        """Write the requests queued during this turn of the event loop, in one write."""
        self._flush_due = False
        if self._connection is None or self._successor is not None or not self._queued:
            return
        if self.lending.loan is not None:
            return  # It is called again when the connection has been handed back.
        data = b"".join([request.packed for request in self._queued])
        try:
            self._connection.write(data)
        except ConnectionLost:
            return  # The read loop notices it too; queued requests wait for the next connection.
        for request in self._queued:
            request.packed = b""
        self._written.extend(self._queued)
        self._queued.clear()

    async def _run(self) -> None:
        """Serve one connection, and further ones while requests wait for one."""
        try:
            while (self._queued or self._successor is not None) and not self._closed:
                try:
                    connection, self._successor = (
                        self._successor or await self._open_connection(),
                        None,
                    )
                except ConnectError as exc:
                    self._refuse_queued(exc)
                    return
                except Exception as exc:
                    self._supervisor.failed("connecting to publish", exc)
                    self._refuse_queued(ConnectError(self._url, f"cannot connect: {exc!r}"))
                    return
                await self._live(connection)
        finally:
            self._task = None

    async def _live(self, connection: Connection) -> None:
        self._connection = connection
        self._reports.connected()
        self._abort_reason = ""
        self._drained.clear()
        reason = "connection closed"
        try:
            if self._preamble:
                self._write_preamble(connection)
            self._flush()
            await first_of(
                self._read(connection),
                keepalive(
                    connection,
                    self._ping,
                    self._url.options.dead_peer_seconds,
                    grace_seconds=self._upload_seconds,
                ),
                self._drain(),
            )
        except ConnectionLost as exc:
            reason = self._abort_reason or str(exc)
            self._reports.lost(reason)
        except Exception as exc:
            reason = "internal error"
            self._reports.ended(reason)
            self._supervisor.failed("publishing", exc)
        finally:
            self._connection = None
            connection.abort()
            self.lending.lost(reason)
            lost, self._written = self._written, deque()
            for request in lost:
                request.fail(OutcomeUnknown(reason))

    def _write_preamble(self, connection: Connection) -> None:
        connection.write(b"".join(map(pack, self._preamble)))
        loop = self._loop
        deadline = loop.time() + self._patience_seconds
        answer: asyncio.Future[list[Any]] = loop.create_future()
        answer.add_done_callback(self._take_preamble)
        self._written.append(_Request(b"", 0, len(self._preamble), answer, deadline))

    def _take_preamble(self, answer: asyncio.Future[list[Any]]) -> None:
        replies = [] if answer.cancelled() or answer.exception() is not None else answer.result()
        for reply in replies:
            if isinstance(reply, ReplyError):
                text = "%s: the server refused a command that prepares the connection: %s"
                self._throttle.log(
                    logging.WARNING,
                    "preamble",
                    text,
                    self._url,
                    reply,
                    extra={"broker": self._url, "reason": reply},
                )

    async def rotate(self) -> None:
        """Replace the connection without failing a request.

        Raises:
            ConnectError: no new connection could be made; the present one continues.
        """
        if self._connection is None:
            return
        replaced = self._connection
        connection = await self._open_connection()
        if self._connection is not replaced or self._closed:
            connection.abort()  # It was lost meanwhile; its replacement is new anyway.
            return
        # New requests wait until the old connection has answered those that were written.
        self._successor = connection
        self.lending.wanted = False
        if self.lending.loan is not None:
            self.lending.recall()
        elif not self._written:
            self._drained.set()

    async def _drain(self) -> None:
        await self._drained.wait()

    def _ping(self) -> asyncio.Future[list[Any]]:
        # Skip the check if the delivery probe has just made it, because commands may be billed.
        pause = 0.45 * self._url.options.dead_peer_seconds
        answer = self.submit(
            [(b"PING",)], check_identity=self._loop.time() - self._identified_at > pause
        )
        answer.add_done_callback(ignore_result)
        return answer

    def _upload_seconds(self) -> float:
        """How long large payloads that were written before may delay a PING."""
        sizes = (request.size_bytes for request in self._written)
        return sum(size for size in sizes if size >= LARGE_BYTES) / SLOWEST_BYTES_PER_SECOND

    async def _read(self, connection: Connection) -> None:
        written = self._written
        while True:
            for reply in await connection.read():
                if is_push(reply):
                    continue
                if not written:
                    # Earlier replies may have been assigned to wrong requests.
                    raise ConnectionLost("the server sent a reply without a request")
                request = written[0]
                if request.replies is None:
                    request.replies = [reply]
                else:
                    request.replies.append(reply)
                if len(request.replies) == request.expected:
                    written.popleft()
                    if not request.future.done():
                        request.future.set_result(request.replies)
            if not written:
                if self._successor is not None:
                    self._drained.set()
                elif self.lending.wanted and not self._queued:
                    self.lending.lend(connection)

    def _refuse_queued(self, error: ConnectError) -> None:
        self._reports.failed(error)
        queued, self._queued = self._queued, deque()
        for request in queued:
            refusal = NotSent(error.problem)
            refusal.__cause__ = error
            request.fail(refusal)

    def _expire(self) -> None:
        """Fail the oldest request after its deadline; if it was written, drop the connection."""
        self._timer = None
        loop = self._loop
        oldest = self._written[0] if self._written else self._queued[0] if self._queued else None
        if oldest is None:
            return
        if loop.time() < oldest.deadline:
            self._timer = loop.call_at(oldest.deadline, self._expire)
            return
        if self._written:
            # The read loop fails the written requests; queued requests continue.
            self.reset(f"no reply within {self._patience_seconds:g} s")
        while self._queued and self._queued[0].deadline <= loop.time():
            self._queued.popleft().fail(NotSent("no connection to the server in time"))
        if self._queued:
            self._timer = loop.call_at(self._queued[0].deadline, self._expire)

    def reset(self, reason: str) -> None:
        """Drop the connection; the next call opens another."""
        if self._connection is not None:
            self._abort_reason = reason
            self._connection.abort()
        if self._successor is not None:
            self._successor.abort()  # It may lead to the same wrong server.
            self._successor = None

    def demoted(self) -> None:
        """A reply has shown that the server has become a replica."""
        if self._on_replica is not None:
            self._on_replica("the server is a replica now")
        else:
            self.reset("the server is a replica now")

    def recall(self) -> None:
        """End requests that wait for a connection as `Recalled`."""
        if self._connection is None:
            queued, self._queued = self._queued, deque()
            for request in queued:
                request.fail(Recalled("no connection to the server in time"))

    async def aclose(self) -> None:
        """Close; requests without a reply end as unknown."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._successor is not None:
            self._successor.abort()
        queued, self._queued = self._queued, deque()
        for request in queued:
            request.fail(NotSent("closed"))
