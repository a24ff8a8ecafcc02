"""The report of one process about itself: its sockets, channels, users, slow clients and counters.

A report is bounded: lists have at most `LONGEST_LIST` rows, and texts at most `LONGEST_TEXT`
characters. It contains names of channels and users, so that only operators may see it. It contains
no addresses, messages or secrets.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

from ...forks import PerProcess
from ..process import hubs_of_broker, per_process

if TYPE_CHECKING:
    from ...url import BrokerURL
    from ..connections import Connection, Unsent
    from ..hub import Hub

__all__ = ["ProcessReport", "SlowClient", "report_of_process"]

LONGEST_LIST = 20
LONGEST_TEXT = 120
MOST_CLASSES = 50
"""The most socket classes. Further ones are counted as `OTHER`."""
OTHER = "other"


class SlowClient(TypedDict):
    """A client that reads too slowly.

    Attributes:
        socket: the name of the socket class.
        user: its tag "user", or None.
        messages, bytes: the messages that wait for it.
    """

    socket: str
    user: str | None
    messages: int
    bytes: int


class ProcessReport(TypedDict):
    """The report of one process about its hubs of one broker.

    Attributes:
        process: a random id of the process.
        host: the name of its host.
        pid: its process id.
        state: "serving", "draining" during a shutdown, "idle" (it has no connections, and does not
            answer until it has one), or "ended".
        started: Unix time in seconds at which it first used a hub.
        seconds: the time since then, by a clock that never jumps.
        python, version: the versions of Python and of django_sockets.
        numbers: the sums of `Hub.stats` over its hubs.
        sockets: name of a socket class -> open websockets. Streams of server-sent events are not
            among them.
        channels: the channels with the most local subscribers, and their number.
        users: the tags "user" with the most connections, and their number.
        slow: the slow clients with the most waiting bytes.
    """

    process: str
    host: str
    pid: int
    state: str
    started: float
    seconds: float
    python: str
    version: str
    numbers: dict[str, int]
    sockets: dict[str, int]
    channels: list[tuple[str, int]]
    users: list[tuple[str, int]]
    slow: list[SlowClient]


class _Identity:
    """The identity of this process as a user of one broker."""

    def __init__(self) -> None:
        from importlib.metadata import PackageNotFoundError, version

        self.process = os.urandom(8).hex()
        self.host = socket.gethostname()
        self.version = ""
        with contextlib.suppress(PackageNotFoundError):  # A source folder without an installation.
            self.version = version("django-sockets")


_identities: PerProcess[dict[BrokerURL, _Identity]] = PerProcess(dict)


def report_of_process(url: BrokerURL, state: str | None = None) -> ProcessReport:
    """The report of this process about its hubs of one broker. For any thread.

    Args:
        state: a state that replaces the present one.
    """
    identity = _identities.current.setdefault(url, _Identity())
    hubs = hubs_of_broker(url)
    numbers: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    users: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    slow: list[SlowClient] = []
    for hub in hubs:
        numbers.update(hub.stats())
        connections = hub.connections.copy()
        classes.update(one.class_name for one, is_stream in connections.items() if not is_stream)
        users.update(user for one in connections if (user := one.user) is not None)
        found = hub.subscriptions.channels.copy()
        channels.update({name: channel.subscriber_count for name, channel in found.items()})
        for one in connections:
            unsent = one.unsent
            if unsent is not None and unsent.slow:
                slow.append(_slow_client(one, unsent))
    for name in [name for name in channels if name.startswith("\x01")]:  # Not an application's.
        del channels[name]
    return ProcessReport(
        process=identity.process,
        host=identity.host[:LONGEST_TEXT],
        pid=os.getpid(),
        state=state or _state(hubs),
        started=round(per_process.current.started, 3),
        seconds=round(time.monotonic() - per_process.current.began, 3),
        python=platform.python_version(),
        version=identity.version,
        numbers=dict(numbers),
        sockets=_bounded(classes),
        channels=_most(channels),
        users=_most(users),
        slow=heapq.nlargest(LONGEST_LIST, slow, key=lambda one: one["bytes"]),
    )


def _state(hubs: Iterable[Hub]) -> str:
    return "draining" if any(hub.connections.draining for hub in hubs) else "serving"


def _slow_client(connection: Connection, unsent: Unsent) -> SlowClient:
    user = connection.user
    return {
        "socket": connection.class_name[:LONGEST_TEXT],
        "user": None if user is None else user[:LONGEST_TEXT],
        "messages": unsent.items,
        "bytes": unsent.size_bytes,
    }


def _bounded(classes: Counter[str]) -> dict[str, int]:
    bounded = {name[:LONGEST_TEXT]: count for name, count in classes.most_common(MOST_CLASSES)}
    rest = classes.total() - sum(bounded.values())
    if rest:
        bounded[OTHER] = bounded.get(OTHER, 0) + rest
    return bounded


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return [(name[:LONGEST_TEXT], count) for name, count in counts.most_common(LONGEST_LIST)]
