"""The watch over open sockets: do their sessions, tokens and users still hold?

Signals tell most of it at once (`signals`). What has none, such as expiry, `queryset.update`, a
flushed cache or another program's change, is found here: one batch of queries per process and
interval, on one thread that is there while a socket is watched and no longer.

While the database does not answer nothing is closed: new handshakes are refused meanwhile, and
closing everybody would only have them all come back at once. Bounded by `outage_seconds`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from ..closing import UNAUTHORIZED, close_local_sockets
from ..conf import database_hygiene
from ..forks import PerProcess
from ..log import LogThrottle
from ..os_threads import start_thread
from ..url import BrokerOptions
from .users import Login, usable

__all__ = ["UNCHECKED", "Watched", "check_now", "check_soon", "watching"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

UNCHECKED = 4503
"""Close code: could not be checked for too long, come back later. After HTTP's 503."""
SHARE = 0.8
"""Of `check_seconds`: the pause, so that looking and closing fit in."""
MIN_PAUSE_SECONDS = 0.2
"""Between two looks that were asked for."""
RETRY_SECONDS = 1.0
"""Before the next look, after an unexpected error."""


@dataclasses.dataclass(frozen=True)
class Watched:
    """What has to stay true for some open sockets; equal ones are looked up once.

    Attributes:
        tag: name and value of the tag to close them by.
        key: the session key or token.
        survivors: which of many keys are still valid; called on a thread, raises in an outage.
        login: the user, or None if there is none to look at.
        check_seconds: the sockets are closed at most so long after it ceased to be true.
        outage_seconds: unchecked for so long, they are closed with `UNCHECKED`.
    """

    tag: tuple[str, str]
    key: str = dataclasses.field(repr=False)
    survivors: Callable[[Sequence[str]], Collection[str]]
    login: Login | None
    check_seconds: float
    outage_seconds: float


class Watch:
    """The watched sockets of one process, and the thread that checks them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.counts: Counter[Watched] = Counter()
        self.checked: dict[Watched, float] = {}
        self.thread: threading.Thread | None = None
        self.soon = False
        self.now = False
        self.last_look = time.monotonic()

    def add(self, watched: Watched) -> None:
        """Watch one more open socket.

        Raises:
            ThreadError: the watch cannot be started; the socket must not be opened.
        """
        with self.changed:
            if self.thread is None:
                self.last_look = time.monotonic()
                self.thread = start_thread(
                    self._work, name="django_sockets watch", purpose="the watch over open sockets"
                )
            self.counts[watched] += 1
            self.checked.setdefault(watched, time.monotonic())
            if self.counts[watched] == 1:
                self.changed.notify()  # Its interval may be shorter.

    def remove(self, watched: Watched) -> None:
        with self.changed:
            self.counts[watched] -= 1
            if not self.counts[watched]:
                del self.counts[watched]
                self.checked.pop(watched, None)
            if not self.counts:
                self.changed.notify()

    def check_soon(self, *, now: bool = False) -> None:
        with self.changed:
            self.soon = True
            self.now = self.now or now
            self.changed.notify()

    def _work(self) -> None:
        """Look at the open sockets until there are none; whatever happens meanwhile."""
        while True:
            try:
                watched = self._next()
                if watched is None:
                    break
                with database_hygiene():
                    self.look(watched)
            except BaseException as exc:
                # Such as SystemExit, from the code of an application.
                _say(exc)
                self._pause()
        try:
            sys.modules["django.db"].connections.close_all()
        except Exception as exc:
            _say(exc)

    def _next(self) -> list[Watched] | None:
        """What to look at, when it is time to; None when nothing is left."""
        with self.changed:
            while self.counts:
                pause = SHARE * min(watched.check_seconds for watched in self.counts)
                if self.soon:
                    pause = min(pause, MIN_PAUSE_SECONDS)
                remaining = self.last_look + pause - time.monotonic()
                if remaining <= 0 or self.now:
                    self.soon = self.now = False
                    self.last_look = time.monotonic()
                    return list(self.counts)
                self.changed.wait(remaining)
            self.thread = None
            return None

    def _pause(self) -> None:
        with self.changed:
            self.changed.wait(RETRY_SECONDS)

    def look(self, watched: Iterable[Watched]) -> None:
        """Close whose session, token or user is gone, and who could not be checked too long."""
        now = time.monotonic()
        dead, unchecked = _gone(watched)
        for entry in dead:
            _close(entry, UNAUTHORIZED)
        for entry in watched:
            if entry not in unchecked:
                if entry in self.checked:
                    self.checked[entry] = now
            elif now - self.checked.get(entry, now) > entry.outage_seconds:
                _close(entry, UNCHECKED)


def _gone(watched: Iterable[Watched]) -> tuple[set[Watched], set[Watched]]:
    """Those that hold no longer, and those of which it is not known."""
    dead: set[Watched] = set()
    unchecked: set[Watched] = set()
    by_kind: dict[Callable[[Sequence[str]], Collection[str]], list[Watched]] = {}
    for entry in watched:
        by_kind.setdefault(entry.survivors, []).append(entry)
    for survivors, entries in by_kind.items():
        try:
            alive = set(survivors([*{entry.key for entry in entries}]))
        except BaseException as exc:  # The code of an application, on a thread of ours.
            unchecked.update(entries)
            _say(exc)
        else:
            dead.update(entry for entry in entries if entry.key not in alive)
    with_user = [entry for entry in watched if entry.login is not None and entry not in dead]
    try:
        good = usable({entry.login for entry in with_user if entry.login is not None})
    except BaseException as exc:
        unchecked.update(with_user)
        _say(exc)
    else:
        dead.update(entry for entry in with_user if entry.login not in good)
    return dead, unchecked - dead


def _say(exc: BaseException) -> None:
    _throttle.log(logging.ERROR, "watch", "open sockets could not be checked: %r", exc)


def _close(entry: Watched, code: int) -> None:
    name, value = entry.tag
    try:
        count = close_local_sockets(code=code, **{name: value})
    except Exception as exc:
        _say(exc)
        return
    if count:
        logger.info("closing %d sockets with %d: their %s holds no longer", count, code, name)


per_process = PerProcess(Watch)
"""Of each process its own watch; tests replace `per_process.current`."""


@contextlib.contextmanager
def watching(watched: Watched) -> Iterator[None]:
    """Watch for the length of a connection."""
    watch = per_process.current
    watch.add(watched)
    try:
        yield
    finally:
        watch.remove(watched)


def check_soon() -> None:
    """Look at once, because orders to close may have been missed; on any thread."""
    per_process.current.check_soon()


def check_now() -> None:
    """Look without any pause, for tests; on any thread."""
    per_process.current.check_soon(now=True)
