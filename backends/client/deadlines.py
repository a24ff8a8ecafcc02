"""Deadlines and pauses: waiting for replies, and the back-off between attempts."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from .parser import ConnectionLost

__all__ = [
    "LARGE_BYTES",
    "Backoff",
    "await_reply",
    "first_answers",
    "first_of",
    "ignore_result",
    "keepalive",
    "while_held",
]

# Not the state of `random`, which the application may have seeded.
_random = random.SystemRandom()

T = TypeVar("T")

LARGE_BYTES = 64 * 1024
"""An incomplete reply of this size shows that a connection is slow rather than dead."""


class Progress(Protocol):
    """The counters of a connection that a deadline considers; see `connection.Connection`."""

    held_seconds: float
    held_since: float | None

    @property
    def received_bytes(self) -> int: ...

    @property
    def partial_bytes(self) -> int: ...


def ignore_result(future: asyncio.Future[Any]) -> None:
    """Mark the exception of a finished future as retrieved, so that asyncio does not log it."""
    if not future.cancelled():
        future.exception()


async def await_reply(
    connection: Progress, reply: asyncio.Future[Any], seconds: float, missing: str
) -> None:
    """Wait for a reply at most `seconds`.

    The time starts again if this process could not have seen the reply: the event loop was blocked,
    delivery to slow subscribers held up reading, or a large payload is still arriving.

    Args:
        missing: the error without its time, such as "no answer to PING".

    Raises:
        ConnectionLost: the reply is missing.
    """
    loop = asyncio.get_running_loop()
    while True:
        started, received = loop.time(), connection.received_bytes
        held = _held_seconds(connection)
        done, _ = await asyncio.wait([reply], timeout=seconds)
        if done:
            return
        blocked = loop.time() - started > 1.5 * seconds
        held_up = _held_seconds(connection) - held > 0.25 * seconds
        arriving = connection.partial_bytes >= LARGE_BYTES and connection.received_bytes > received
        if not (blocked or held_up or arriving):
            raise ConnectionLost(f"{missing} within {seconds:g} s")


async def while_held(connection: Progress | None, work: Awaitable[object]) -> None:
    """Await work that holds up reading; the time does not count against the server."""
    started = time.monotonic()
    if connection is not None:
        connection.held_since = started
    try:
        await work
    finally:
        if connection is not None:
            connection.held_since = None
            connection.held_seconds += time.monotonic() - started


def _held_seconds(connection: Progress) -> float:
    now = 0.0 if connection.held_since is None else time.monotonic() - connection.held_since
    return connection.held_seconds + now


async def keepalive(
    connection: Progress,
    ping: Callable[[], asyncio.Future[Any]],
    dead_peer_seconds: float,
    grace_seconds: Callable[[], float] = float,
) -> None:
    """Send PING twice in `dead_peer_seconds`, with a deadline for the reply.

    Args:
        ping: writes a PING and returns the future of its reply.
        grace_seconds: returns how much longer the reply may take at this moment; 0 by default.

    Raises:
        ConnectionLost: no reply came in time.
    """
    half = dead_peer_seconds / 2
    while True:
        await asyncio.sleep(half)
        await await_reply(connection, ping(), half + grace_seconds(), "no answer to PING")


async def first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines concurrently until one ends. Cancel the others and raise the first error."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


async def first_answers(
    questions: Iterable[Coroutine[Any, Any, T]], seconds: float, grace_seconds: float
) -> tuple[list[T], list[Exception]]:
    """Ask several servers concurrently, because some may be slow or out of date.

    Args:
        questions: each returns an answer or raises; ValueError stands for a malformed answer.
        seconds: how long the first answer may take.
        grace_seconds: how long the others may take after the first.

    Returns:
        The answers and the errors.
    """
    loop = asyncio.get_running_loop()
    pending = {loop.create_task(question) for question in questions}
    answers: list[T] = []
    problems: list[Exception] = []
    give_up = loop.time() + seconds
    try:
        while pending and (left := give_up - loop.time()) > 0:
            done, pending = await asyncio.wait(
                pending, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                try:
                    answers.append(task.result())
                except Exception as exc:  # The other servers' answers still count.
                    problems.append(exc)
            if answers:
                give_up = min(give_up, loop.time() + grace_seconds)
    finally:
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
    return answers, problems


class Backoff:
    """Pauses between attempts: none before the first, then doubling, with jitter.

    Args:
        cap_seconds: the longest pause; `CAP_SECONDS` by default.

    Attributes:
        FIRST_SECONDS: the first pause that is not zero.
        CAP_SECONDS: the longest pause, unless another is given.
    """

    FIRST_SECONDS = 0.05
    CAP_SECONDS = 1.0

    def __init__(self, cap_seconds: float | None = None) -> None:
        self._cap_seconds = self.CAP_SECONDS if cap_seconds is None else cap_seconds
        self._seconds = 0.0
        self._pause: asyncio.Future[None] | None = None

    def reset(self) -> None:
        """Make the next pause zero again."""
        self._seconds = 0.0

    def increase(self) -> float:
        """Double the next pause and return it, in seconds without jitter."""
        self._seconds = min(self._cap_seconds, max(self.FIRST_SECONDS, 2 * self._seconds))
        return self._seconds

    def cut_short(self) -> None:
        """End the present pause and reset, because the next attempt is likely to succeed."""
        self.reset()
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def pause(self) -> None:
        """Wait for 50 to 100% of the present pause, and double the next one."""
        seconds = self._seconds * _random.uniform(0.5, 1.0)
        self.increase()
        self._pause = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._pause], timeout=seconds)
        self._pause = None
