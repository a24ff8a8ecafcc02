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
    slow: list[SlowClient] = []
    channels: Counter[str] = Counter()
    for hub in hubs:
        for name, value in hub.stats().items():
            numbers[name] += value  # type: ignore[operator] # each value of the dict is an int
        _add_connections(hub, classes, users, slow)
        for name, channel in hub.subscriptions.channels.copy().items():
            if name.isprintable():  # Not the library's own channels.
                channels[name] += channel.subscriber_count
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


def _add_connections(
    hub: Hub, classes: Counter[str], users: Counter[str], slow: list[SlowClient]
) -> None:
    for connection, is_stream in hub.connections.copy().items():
        name, user = connection.class_name[:LONGEST_TEXT], connection.user
        if user is not None:
            user = user[:LONGEST_TEXT]
            users[user] += 1
        if not is_stream:
            classes[name] += 1
        unsent = connection.unsent
        if unsent is not None and unsent.slow:
            slow.append(
                {"socket": name, "user": user, "messages": unsent.items, "bytes": unsent.size_bytes}
            )


def _bounded(classes: Counter[str]) -> dict[str, int]:
    bounded = dict(classes.most_common(MOST_CLASSES))
    rest = classes.total() - sum(bounded.values())
    if rest:
        bounded[OTHER] = bounded.get(OTHER, 0) + rest
    return bounded


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    most = heapq.nlargest(LONGEST_LIST, counts.items(), key=lambda pair: pair[1])
    return [(name[:LONGEST_TEXT], count) for name, count in most]
