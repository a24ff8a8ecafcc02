"""The watch over open sockets: it closes those whose session, token or user is no longer valid.

Most changes send a signal, see `signals`. The watch finds the others, such as expiry,
`queryset.update`, a flushed cache or a change by another program. It makes one batch of queries per
process and interval, on one thread. The thread ends when no socket is watched.

While the database does not answer, no socket is closed, up to `outage_seconds`: new handshakes are
refused at that time, and all closed clients would reconnect at once.
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
from ..forks import PerProcess
from ..log import LogThrottle
from ..optional_django import database_hygiene
from ..os_threads import start_thread
from ..url import BrokerOptions
from .users import Login, usable

__all__ = ["UNCHECKED", "Watched", "check_now", "check_soon", "watching"]

logger = logging.getLogger("django_sockets")
_throttle = LogThrottle(logger, BrokerOptions.log_interval_seconds)

UNCHECKED = 4503
"""Close code of a socket that could not be checked for `outage_seconds`; named after HTTP's 503."""
SHARE = 0.8
"""The pause between two checks, as a share of `check_seconds`; the rest is for the check itself."""
MIN_PAUSE_SECONDS = 0.2
"""The shortest pause between two checks that `check_soon` requested."""
RETRY_SECONDS = 1.0
"""The pause before the next check after an unexpected error."""


@dataclasses.dataclass(frozen=True)
class Watched:
    """The session or token of some open sockets. Equal entries are checked once.

    Attributes:
        tag: name and value of the tag by which the sockets are closed.
        key: the session key or token.
        survivors: returns which of many keys are still valid. It is called on a thread and raises
            if it cannot tell.
        login: the user, or None if there is no user to check.
        check_seconds: the longest that the sockets outlive the session, token or user.
        outage_seconds: if they cannot be checked for this long, they are closed with `UNCHECKED`.
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
        self.last_check = time.monotonic()

    def add(self, watched: Watched) -> None:
        """Watch one more open socket.

        Raises:
            ThreadError: the watch cannot be started; the socket must not be opened.
        """
        with self.changed:
            if self.thread is None:
                self.last_check = time.monotonic()
                self.thread = start_thread(
                    self._work, name="django_sockets watch", purpose="the watch over open sockets"
                )
            self.counts[watched] += 1
            self.checked.setdefault(watched, time.monotonic())
            if self.counts[watched] == 1:
                self.changed.notify()  # The new entry may have a shorter interval.

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
            if self.counts:  # Else the next socket would be looked at for no reason.
                self.soon = True
                self.now = self.now or now
                self.changed.notify()

    def _work(self) -> None:
        """Check the open sockets until there are none. An error does not end the thread."""
        while True:
            try:
                watched = self._next()
                if watched is None:
                    break
                with database_hygiene():
                    self.check(watched)
            except BaseException as exc:
                # Code of the application may raise SystemExit, for example.
                _log_unchecked(exc)
                self._pause()
        try:
            sys.modules["django.db"].connections.close_all()
        except Exception as exc:
            _log_unchecked(exc)

    def _next(self) -> list[Watched] | None:
        """Wait until the next check is due; return the entries, or None if there are none left."""
        with self.changed:
            while self.counts:
                pause = SHARE * min(watched.check_seconds for watched in self.counts)
                if self.soon:
                    pause = min(pause, MIN_PAUSE_SECONDS)
                remaining = self.last_check + pause - time.monotonic()
                if remaining <= 0 or self.now:
                    self.soon = self.now = False
                    self.last_check = time.monotonic()
                    return list(self.counts)
                self.changed.wait(remaining)
            self.thread = None
            return None

    def _pause(self) -> None:
        with self.changed:
            self.changed.wait(RETRY_SECONDS)

    def check(self, watched: Iterable[Watched]) -> None:
        """Close the sockets of invalid entries, and of entries unchecked for `outage_seconds`."""
        now = time.monotonic()
        dead, unchecked = invalid_and_unchecked(watched)
        for entry in dead:
            _close(entry, UNAUTHORIZED)
        for entry in watched:
            if entry not in unchecked:
                if entry in self.checked:
                    self.checked[entry] = now
            elif now - self.checked.get(entry, now) > entry.outage_seconds:
                _close(entry, UNCHECKED)


def invalid_and_unchecked(watched: Iterable[Watched]) -> tuple[set[Watched], set[Watched]]:
    """The entries that are no longer valid, and those that could not be checked."""
    dead: set[Watched] = set()
    unchecked: set[Watched] = set()
    by_kind: dict[Callable[[Sequence[str]], Collection[str]], list[Watched]] = {}
    for entry in watched:
        by_kind.setdefault(entry.survivors, []).append(entry)
    for survivors, entries in by_kind.items():
        try:
            alive = set(survivors([*{entry.key for entry in entries}]))
        except BaseException as exc:  # Code of the application runs on the library's thread.
            unchecked.update(entries)
            _log_unchecked(exc)
        else:
            dead.update(entry for entry in entries if entry.key not in alive)
    with_user = [entry for entry in watched if entry.login is not None and entry not in dead]
    try:
        good = usable({entry.login for entry in with_user if entry.login is not None})
    except BaseException as exc:
        unchecked.update(with_user)
        _log_unchecked(exc)
    else:
        dead.update(entry for entry in with_user if entry.login not in good)
    return dead, unchecked - dead


def _log_unchecked(exc: BaseException) -> None:
    _throttle.log(
        logging.ERROR, "watch", "open sockets could not be checked: %r", exc, extra={"reason": exc}
    )


def _close(entry: Watched, code: int) -> None:
    name, value = entry.tag
    try:
        count = close_local_sockets(code=code, **{name: value})
    except Exception as exc:
        _log_unchecked(exc)
        return
    if count:
        logger.info(
            "closing %d sockets with %d: their %s is no longer valid",
            count,
            code,
            name,
            extra={"count": count, "code": code, "reason": name},
        )


per_process = PerProcess(Watch)
"""The watch of this process."""


@contextlib.contextmanager
def watching(watched: Watched) -> Iterator[None]:
    """Watch the session or token of a connection while the block runs."""
    watch = per_process.current
    watch.add(watched)
    try:
        yield
    finally:
        watch.remove(watched)


def check_soon() -> None:
    """Check soon, because orders to close may have been lost. Call it on any thread."""
    per_process.current.check_soon()


def check_now() -> None:
    """Check without a pause. Call it on any thread. Test clients use it to wait for a close."""
    per_process.current.check_soon(now=True)
