"""Work on a thread of its own, for what is too long for a handler's thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ..conf import database_hygiene
from ..os_threads import start_thread

__all__ = ["run_in_thread"]

logger = logging.getLogger("django_sockets")


def run_in_thread(command: Callable[..., Any], *args: Any, **kwargs: Any) -> threading.Thread:
    """Run `command(*args, **kwargs)` on a new thread, apart from any connection; returns at once.

    Database connections that the command opened are cleaned up as after a request. The thread is a
    daemon: it does not keep the process alive, and is cut off where it is when the process ends.

    Args:
        command: a plain function. What it raises is logged.

    Returns:
        The running thread, to be joined or forgotten.

    Raises:
        ThreadError: it cannot be started, and the command does not run.
    """
    name = getattr(command, "__name__", repr(command))

    def run() -> None:
        try:
            with database_hygiene():
                command(*args, **kwargs)
        except Exception:
            logger.exception("run_in_thread: %s failed", name)

    return start_thread(
        run, name=f"django_sockets {name}", purpose="run_in_thread", greenlet_will_do=True
    )
