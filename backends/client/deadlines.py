"""Waiting for a server: deadlines on its answers, and the pauses between attempts to reach it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from .connection import LARGE_BYTES, Link, LinkLost

__all__ = ["Backoff", "expect", "first_answers", "first_of", "keepalive"]

T = TypeVar("T")


async def expect(link: Link, reply: asyncio.Future[Any], seconds: float, missing: str) -> None:
    """Wait for a reply at most `seconds`.

    The time is granted anew when this process could not have seen the reply: its loop was held up,
    the link's reader was waiting for slow subscribers, or a large payload is still arriving.

    Raises:
        LinkLost: the reply is missing.
    """
    loop = asyncio.get_running_loop()
    while True:
        started, received, held = loop.time(), link.received_bytes, _held_seconds(link)
        done, _ = await asyncio.wait([reply], timeout=seconds)
        if done:
            return
        held_up = loop.time() - started > 1.5 * seconds
        waiting = _held_seconds(link) - held > 0.25 * seconds
        arriving = link.partial_bytes >= LARGE_BYTES and link.received_bytes > received
        if not (held_up or waiting or arriving):
            raise LinkLost(f"{missing} within {seconds:g} s")


def _held_seconds(link: Link) -> float:
    now = 0.0 if link.held_since is None else time.monotonic() - link.held_since
    return link.held_seconds + now


async def keepalive(
    link: Link,
    ping: Callable[[], asyncio.Future[Any]],
    dead_peer_seconds: float,
    grace_seconds: Callable[[], float] = float,
) -> None:
    """PING twice in `dead_peer_seconds`, with a deadline on the answer.

    Args:
        ping: writes a PING and returns the future of its answer.
        grace_seconds: how much longer the answer may take at this moment.

    Raises:
        LinkLost: no answer came.
    """
    half = dead_peer_seconds / 2
    while True:
        await asyncio.sleep(half)
        await expect(link, ping(), half + grace_seconds(), "no answer to PING")


async def first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines side by side until one ends; cancel the others, raise what it raised."""
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
    """Ask several servers the same at once: some are slow, some know less than others.

    Args:
        questions: each returns an answer, or raises ConnectError, or ValueError for a bad answer.
        seconds: how long the first answer may take.
        grace_seconds: how long others may take after the first.

    Returns:
        The answers that came, and what was raised.
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
    """Pauses between attempts: none before the first, then doubling up to 1 s, with jitter."""

    FIRST_SECONDS = 0.05
    CAP_SECONDS = 1.0

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pause: asyncio.Future[None] | None = None

    def reset(self) -> None:
        self._seconds = 0.0

    def cut_short(self) -> None:
        """There is reason to hope again: the pause ends now, and begins anew from none."""
        self.reset()
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def pause(self) -> None:
        seconds = self._seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        self._seconds = min(self.CAP_SECONDS, max(self.FIRST_SECONDS, 2 * self._seconds))
        self._pause = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._pause], timeout=seconds)
        self._pause = None
