"""Counts the clients and subscriptions of several servers, and waits for such facts.

Used by `clusters`, `sentinels` and `serverless`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import redis

from .cache_server import CacheServer
from .commands import CLIENT_NAME

__all__ = ["answering", "count_channels", "count_connections", "each", "until"]

_POLL_SECONDS = 0.01
_THREADS = 32
_USERS_CHANNELS = "*:{*"

_T = TypeVar("_T")


def answering(servers: Iterable[CacheServer]) -> list[CacheServer]:
    """The servers that run and are not paused."""
    return [server for server in servers if server.running and not server.paused]


def count_connections(servers: Iterable[CacheServer]) -> int:
    """The number of client connections of all servers, without those of servers and test kit.

    A connection that has not sent a command yet is not counted: it may be a sentinel that is about
    to set its name.
    """
    lines = [
        dict(word.partition("=")[::2] for word in line.split(" "))
        for server in answering(servers)
        for line in server.execute("CLIENT", "LIST").splitlines()
    ]
    return sum(
        line["cmd"] != "NULL"
        and line["name"] != CLIENT_NAME
        and not line["name"].startswith("sentinel-")
        and not set(line["flags"]) & set("MS")
        for line in lines
    )


def count_channels(servers: Iterable[CacheServer]) -> int:
    """The number of users' channels that have a subscription, sharded or not, on any server."""
    names: set[str] = set()
    for server in answering(servers):
        for kind in ("CHANNELS", "SHARDCHANNELS"):
            # Servers before version 7.0 do not have sharded channels.
            with contextlib.suppress(redis.ResponseError):
                names.update(server.execute("PUBSUB", kind, _USERS_CHANNELS))
    return len(names)


def until(reach: Callable[[], _T | None], timeout_seconds: float, otherwise: str) -> _T:
    """Call `reach()` until its result is true, and return the result.

    It polls, because servers send no events about themselves. A lost connection, or no reply,
    counts as false: a sentinel that changes the role of a server also cuts its connections.

    Raises:
        TimeoutError: the result stays false; the message begins with `otherwise`.
    """
    give_up = time.monotonic() + timeout_seconds
    while True:
        lost: Exception | None = None
        try:
            if answer := reach():
                return answer
        except (redis.ConnectionError, redis.TimeoutError) as exc:
            lost = exc
        if time.monotonic() > give_up:
            raise TimeoutError(f"{otherwise} within {timeout_seconds:g} s") from lost
        time.sleep(_POLL_SECONDS)


def each(act: Callable[[_T], object], items: Iterable[_T]) -> None:
    """Act on all items at the same time; raises the first error."""
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(act, items))
