"""Starts threads of the operating system, with a clear error where that is not possible.

gevent and eventlet replace `threading` for the whole process. A "thread" is then a greenlet, and a
greenlet that blocks or runs an event loop stops all others. gevent keeps the original functions, so
the event loop of the library gets a real thread under gevent.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .errors import ThreadError

__all__ = ["OsThread", "original", "replaced_by", "start_thread", "waiting"]


def replaced_by() -> str | None:
    """ "gevent" or "eventlet" if it has replaced threads by greenlets in this process."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return "gevent"
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        return "eventlet"
    return None


def start_thread(
    target: Callable[..., object],
    args: tuple[Any, ...] = (),
    *,
    name: str,
    purpose: str,
    greenlet_will_do: bool = False,
) -> threading.Thread:
    """Start a daemon thread that may block.

    Args:
        purpose: the purpose of the thread, as the subject of the error message.
        greenlet_will_do: start a greenlet if threads are replaced. For threads that run only code
            of the application.

    Raises:
        ThreadError: the thread cannot be started, or would be a greenlet.
    """
    library = replaced_by()
    if library is not None and not greenlet_will_do:
        raise ThreadError(
            f"{purpose} needs a thread, and {library} has replaced threads by greenlets in this "
            f"process: serve websockets in a process without {library}'s monkey patch, such as "
            "uvicorn. Broadcasting works under gevent."
        )
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    _start(thread.start, purpose)
    return thread


class OsThread:
    """A daemon thread that runs an event loop. It is a real thread under gevent, too.

    Args:
        target: called without arguments.
        purpose: see `start_thread`.

    Raises:
        ThreadError: the thread cannot be started.
    """

    def __init__(self, target: Callable[[], object], *, name: str, purpose: str) -> None:
        self._ended = threading.Event()
        self._target = target
        if replaced_by() == "gevent":
            start_new_thread = original("_thread", "start_new_thread")
            _start(lambda: start_new_thread(self._run, ()), purpose)
        else:
            start_thread(self._run, name=name, purpose=purpose)

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._ended.set()

    def is_alive(self) -> bool:
        """True until the target has returned."""
        return not self._ended.is_set()

    def join(self, timeout_seconds: float) -> None:
        """Wait until the target has returned, at most `timeout_seconds`."""
        self._ended.wait(timeout_seconds)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """A context for a wait for another thread.

    gevent reports a deadlock if a thread waits while its hub has no timer or socket. The context
    keeps a timer running.
    """
    if replaced_by() != "gevent":
        yield
        return
    timer = sys.modules["gevent"].get_hub().loop.timer(1.0, 1.0)
    timer.start(int)  # A timer that only keeps gevent's hub busy.
    try:
        yield
    finally:
        timer.stop()
        timer.close()


def original(module: str, name: str) -> Any:
    """The original of `module.name`, which gevent has replaced."""
    return sys.modules["gevent.monkey"].get_original(module, name)


def _start(start: Callable[[], object], purpose: str) -> None:
    try:
        start()
    except (RuntimeError, MemoryError) as exc:
        raise ThreadError(
            f"{purpose} needs a thread, and none can be started: {exc}. A limit on threads "
            "(ulimit -u, or the memory of a container) may be reached; the next call tries again."
        ) from exc
