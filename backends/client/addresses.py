"""Connecting to a host name with several addresses, without waiting long for a silent one.

Attempts start one after the other: the next one starts when the last one has failed or has taken
`STAGGER_SECONDS`. The first success ends the others (RFC 8305, "Happy Eyeballs"). asyncio's own
implementation ends with the TCP handshake, so that it would keep a server that accepts the
connection and never answers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

__all__ = ["addresses_of", "first_success", "reason"]

_T = TypeVar("_T")

STAGGER_SECONDS = 0.25
"""If an attempt takes longer, the next one starts; the value of RFC 8305."""


async def addresses_of(host: str, port: int) -> list[str]:
    """The 1..n numeric addresses of a host, alternating between IPv6 and IPv4.

    Raises:
        OSError: the name cannot be resolved.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return [host]
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families: dict[int, list[str]] = {}
    for family, _, _, _, where in infos:
        scope = f"%{where[3]}" if len(where) == 4 and where[3] else ""
        families.setdefault(family, []).append(f"{where[0]}{scope}")
    in_turn = itertools.chain(*itertools.zip_longest(*families.values()))
    addresses = list(dict.fromkeys(address for address in in_turn if address is not None))
    if not addresses:
        raise OSError(f"the name {host} has no address")
    return addresses


async def first_success(
    attempts: Sequence[Callable[[], Coroutine[Any, Any, _T]]],
    *,
    seconds: float,
    discard: Callable[[_T], object],
    final: Callable[[BaseException], bool],
) -> _T:
    """The result of the first attempt that succeeds.

    Cancelling the call cancels its attempts and waits for their end.

    Args:
        attempts: 1..n, the preferred one first.
        seconds: the time for all attempts; the last one gets at least half of it.
        discard: called with the result of an attempt that succeeded too late.
        final: returns whether an error makes all other attempts useless.

    Raises:
        Exception: a final error at once. If all attempts fail, their common error, or an OSError
            with the texts of all.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    stagger = min(STAGGER_SECONDS, seconds / 2 / len(attempts))
    waiting = list(reversed(attempts))
    tasks: list[asyncio.Task[_T]] = []
    pending: set[asyncio.Task[_T]] = set()
    errors: list[BaseException] = []
    winner: asyncio.Task[_T] | None = None
    try:
        while winner is None and (waiting or pending):
            if waiting:
                tasks.append(asyncio.ensure_future(waiting.pop()()))
                pending.add(tasks[-1])
            done, pending = await asyncio.wait(
                pending,
                timeout=stagger if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                error = task.exception()
                if error is None:
                    winner = winner or task
                elif final(error):
                    raise error
                else:
                    errors.append(error)
    finally:
        if pending:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)
        for task in tasks:
            if task is winner or not task.done() or task.cancelled():
                continue
            if task.exception() is None:
                discard(task.result())
    if winner is not None:
        return winner.result()
    texts = list(dict.fromkeys(map(reason, errors)))
    if len(texts) == 1:
        raise errors[0]
    raise OSError("; ".join(texts))


def reason(error: BaseException) -> str:
    """Why an attempt failed, in the usual words of the operating system."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return str(error).rstrip(".") or type(error).__name__
