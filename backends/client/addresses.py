"""A name with several addresses: each gets its chance, and a silent one does not use up the time.

Attempts start one after the other, the next one when the last one has failed or has taken a while;
the first that succeeds ends the others (RFC 8305, "Happy Eyeballs"). asyncio's own version is done
when TCP is connected, and so it stays with a server that accepts a connection and never answers.
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
"""An attempt that takes longer gets company; the value of RFC 8305."""


async def addresses_of(host: str, port: int) -> list[str]:
    """The 1..n addresses of a host as numbers, IPv6 and IPv4 in turn.

    Raises:
        OSError: the name is not known.
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

    A call that is cancelled cancels its attempts, and waits for their end.

    Args:
        attempts: 1..n, the preferred one first.
        seconds: what they have together; even the last one gets half of it.
        discard: takes the result of an attempt that succeeded too late.
        final: whether no other attempt makes sense after an error.

    Raises:
        Exception: a final one at once; else, when all have failed, the error of the only one, or an
            OSError with the texts of all.
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
    """Why an attempt failed, in the words that administrators know."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return str(error).rstrip(".") or type(error).__name__
