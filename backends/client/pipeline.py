"""Commands of many concurrent callers over one connection, in the order of the calls.

Nothing is ever sent twice: a request that was written and not answered ends as unknown.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from ...errors import BrokerClosed, ConnectError
from ...log import LogThrottle
from ...loops import OfOneLoop
from ...url import BrokerURL
from .connection import LARGE_BYTES, PRIMARY, Identity, Link, LinkLost, Opener, is_push, pack
from .deadlines import first_of, keepalive
from .inquiry import Inquiry
from .supervision import Supervisor

__all__ = ["NotSent", "OutcomeUnknown", "Pipeline", "Recalled"]

logger = logging.getLogger("django_sockets")

SLOWEST_BYTES_PER_SECOND = 1024 * 1024
"""A deadline grows with the bytes in flight at this rate."""


class NotSent(Exception):
    """The request was certainly not carried out."""


class Recalled(NotSent):
    """The request waited for a connection, and its sender wants it back."""


class OutcomeUnknown(Exception):
    """The request was written and no reply came."""


class _Request(msgspec.Struct, gc=False, eq=False):
    """Commands on their way. Small: the garbage collector goes over what thousands wait for."""

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
        open_link: connects; raises ConnectError.
        on_replica: called when the server turns out to be a replica, which would take messages and
            deliver them to its own subscribers only; it has to call `reset`. None: the server is
            not asked.
    """

    def __init__(
        self,
        url: BrokerURL,
        open_link: Opener,
        *,
        on_replica: Callable[[str], None] | None = None,
    ) -> None:
        self._url = url
        self._open_link = open_link
        self._queued: deque[_Request] = deque()
        self._written: deque[_Request] = deque()
        self._link: Link | None = None
        self._successor: Link | None = None
        self._drained = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._flush_due = False
        self._abort_reason = ""
        self._timer: asyncio.TimerHandle | None = None
        self._patience_seconds = url.options.publish_timeout_seconds
        self._on_replica = on_replica
        self._inquiry = Inquiry()
        self._inquired_at = -math.inf
        self._supervisor = Supervisor(url)
        self._throttle = LogThrottle(logger, url.options.log_interval_seconds)
        self._closed = False

    @property
    def link(self) -> Link | None:
        """The present connection."""
        return self._link

    @property
    def identity(self) -> Identity:
        """The server at the other end, as far as there is one and it is known."""
        return Identity() if self._link is None else self._link.identity

    @property
    def newest_identity(self) -> Identity:
        """The same, or of the connection that is about to take the present one's place."""
        return self.identity if self._successor is None else self._successor.identity

    @property
    def busy(self) -> bool:
        """Whether a request waits for its reply."""
        return bool(self._queued or self._written)

    @property
    def waiting(self) -> bool:
        """Whether a request waits for a connection."""
        return self._link is None and bool(self._queued)

    def submit(
        self, commands: Sequence[tuple[bytes, ...]], *, inquire: bool = False
    ) -> asyncio.Future[list[Any]]:
        """Send 1..n commands in one piece; the future has their replies, errors among them.

        Requests are written in the order of the calls.

        Args:
            inquire: ask the server in the same piece for its role; the replies to that come behind
                the others.

        The future raises:
            NotSent: no connection could be made, its `__cause__` says why.
            OutcomeUnknown: the connection was lost, or no reply came in `publish_timeout_seconds`.

        Raises:
            BrokerClosed: after `aclose`.
        """
        if self._closed:
            raise BrokerClosed(self._url)
        if inquire:
            return self._inquire(commands)
        packed = [pack(command) for command in commands]
        return self._enqueue(packed[0] if len(packed) == 1 else b"".join(packed), len(packed))

    def _inquire(self, commands: Sequence[tuple[bytes, ...]]) -> asyncio.Future[list[Any]]:
        link = self._link
        if self._on_replica is None or link is None:  # A new link is asked when it is opened.
            return self.submit(commands)
        self._inquired_at = self._loop.time()
        questions = self._inquiry.questions(link.identity)
        answer = self.submit([*commands, *questions])
        answer.add_done_callback(partial(self._learn, link, questions))
        return answer

    def _learn(
        self, link: Link, questions: Sequence[tuple[bytes, ...]], answer: asyncio.Future[list[Any]]
    ) -> None:
        if answer.cancelled() or answer.exception() is not None or self._link is not link:
            return
        replies = answer.result()
        self._inquiry.learn(link, questions, replies[len(replies) - len(questions) :])
        if link.identity.role not in (PRIMARY, "") and self._on_replica is not None:
            self._on_replica("the server is a replica now")

    def _enqueue(self, packed: bytes, count: int = 1) -> asyncio.Future[list[Any]]:
        loop = self._loop
        size = len(packed)
        deadline = loop.time() + self._patience_seconds + size / SLOWEST_BYTES_PER_SECOND
        request = _Request(packed, size, count, loop.create_future(), deadline)
        self._queued.append(request)
        if self._timer is not None and request.deadline < self._timer.when():
            self._timer.cancel()  # It was set for a large request, which may be done.
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_at(request.deadline, self._expire)
        if self._link is not None:
            if not self._flush_due:
                self._flush_due = True
                loop.call_soon(self._flush)
        elif self._task is None:
            self._task = loop.create_task(self._run(), name="django_sockets publisher")
        return request.future

    def _flush(self) -> None:
        """Write what the callers of this turn of the loop have queued, in one piece."""
        self._flush_due = False
        if self._link is None or self._successor is not None or not self._queued:
            return
        data = b"".join([request.packed for request in self._queued])
        try:
            self._link.write(data)
        except LinkLost:
            return  # The reader of this link is about to say so; what is queued waits for the next.
        for request in self._queued:
            request.packed = b""
        self._written.extend(self._queued)
        self._queued.clear()

    async def _run(self) -> None:
        """Live through one connection, and as many more as there are requests waiting for one."""
        try:
            while (self._queued or self._successor is not None) and not self._closed:
                try:
                    link, self._successor = self._successor or await self._open_link(), None
                except ConnectError as exc:
                    self._refuse_queued(exc)
                    return
                except Exception as exc:
                    self._supervisor.failed("connecting to publish", exc)
                    self._refuse_queued(ConnectError(self._url, f"cannot connect: {exc!r}"))
                    return
                await self._live(link)
        finally:
            self._task = None

    async def _live(self, link: Link) -> None:
        self._link = link
        self._abort_reason = ""
        self._drained.clear()
        reason = "connection closed"
        try:
            self._flush()
            await first_of(
                self._read(link),
                keepalive(
                    link,
                    self._ping,
                    self._url.options.dead_peer_seconds,
                    grace_seconds=self._upload_seconds,
                ),
                self._drain(),
            )
        except LinkLost as exc:
            reason = self._abort_reason or str(exc)
            self._throttle.log(
                logging.WARNING, "lost", "%s: publishing connection lost: %s", self._url, reason
            )
        except Exception as exc:
            reason = "internal error"
            self._supervisor.failed("publishing", exc)
        finally:
            self._link = None
            link.abort()
            lost, self._written = self._written, deque()
            for request in lost:
                request.fail(OutcomeUnknown(reason))

    async def rotate(self) -> None:
        """Put a new connection in the place of the present one, without failing a request.

        Raises:
            ConnectError: no new one could be made; the present one goes on.
        """
        if self._link is None:
            return
        replaced = self._link
        link = await self._open_link()
        if self._link is not replaced or self._closed:
            link.abort()  # It was lost meanwhile, and what comes after it is new enough.
            return
        # From now on requests wait; what was written is answered on the old connection first.
        self._successor = link
        if not self._written:
            self._drained.set()

    async def _drain(self) -> None:
        await self._drained.wait()

    def _ping(self) -> asyncio.Future[list[Any]]:
        # Not where the delivery probe has just asked: commands may be billed.
        pause = 0.45 * self._url.options.dead_peer_seconds
        answer = self.submit([(b"PING",)], inquire=self._loop.time() - self._inquired_at > pause)
        answer.add_done_callback(_retrieve)
        return answer

    def _upload_seconds(self) -> float:
        """What a PING may have to wait for large payloads on their way before it."""
        sizes = (request.size_bytes for request in self._written)
        return sum(size for size in sizes if size >= LARGE_BYTES) / SLOWEST_BYTES_PER_SECOND

    async def _read(self, link: Link) -> None:
        written = self._written
        while True:
            for reply in await link.read():
                if is_push(reply):
                    continue
                if not written:
                    # Each reply may have been counted for the request before its own.
                    raise LinkLost("the server sent a reply that nothing had asked for")
                request = written[0]
                if request.replies is None:
                    request.replies = [reply]
                else:
                    request.replies.append(reply)
                if len(request.replies) == request.expected:
                    written.popleft()
                    if not request.future.done():
                        request.future.set_result(request.replies)
            if self._successor is not None and not written:
                self._drained.set()

    def _refuse_queued(self, error: ConnectError) -> None:
        self._throttle.log(logging.WARNING, "connect", "cannot publish: %s", error)
        queued, self._queued = self._queued, deque()
        for request in queued:
            refusal = NotSent(error.problem)
            refusal.__cause__ = error
            request.fail(refusal)

    def _expire(self) -> None:
        """Give up on the oldest request if its time is over; with it goes the connection."""
        self._timer = None
        loop = self._loop
        oldest = self._written[0] if self._written else self._queued[0] if self._queued else None
        if oldest is None:
            return
        if loop.time() < oldest.deadline:
            self._timer = loop.call_at(oldest.deadline, self._expire)
            return
        if self._written:
            # Its reader fails what was written; what is queued goes on.
            self.reset(f"no reply within {self._patience_seconds:g} s")
        while self._queued and self._queued[0].deadline <= loop.time():
            self._queued.popleft().fail(NotSent("no connection to the server in time"))
        if self._queued:
            self._timer = loop.call_at(self._queued[0].deadline, self._expire)

    def reset(self, reason: str) -> None:
        """Drop the connection; the next call opens another."""
        if self._link is not None:
            self._abort_reason = reason
            self._link.abort()
        if self._successor is not None:
            self._successor.abort()  # It may lead to the same server.
            self._successor = None

    def recall(self) -> None:
        """Give back what waits for a connection: it ends as `Recalled`."""
        if self._link is None:
            queued, self._queued = self._queued, deque()
            for request in queued:
                request.fail(Recalled("no connection to the server in time"))

    async def aclose(self) -> None:
        """Close; what waits for a reply ends as unknown."""
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


def _retrieve(future: asyncio.Future[list[Any]]) -> None:
    """Mark a failure as seen: the keepalive may be gone by the time its PING fails."""
    if not future.cancelled():
        future.exception()
