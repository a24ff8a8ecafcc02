"""Server processes that end with this process, and whose files are removed.

Used by the other modules of `testing`, on Linux and macOS. This module does not depend on the kind
of server.
"""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GuardedProcess", "OwnDirectory", "Startable"]

_LOG_TAIL_LINES = 20

# The guard waits for the end of its standard input. Only this process holds it open, so that it
# ends with this process, also after SIGKILL. (Linux's PDEATHSIG fires when the *thread* ends.)
_GUARD = 'read -r _; kill -KILL "$1"; rm -rf -- "$2"'


class Startable(abc.ABC):
    """Base of what a `with` block starts and stops."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start it, and return when it works."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop it, also after a failed `start`. A repeated call has no effect."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class OwnDirectory:
    """A temporary directory that is removed with its object, or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="django_sockets-"))
        self.remove = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, owner_pid: int) -> None:
    # A forked child has a copy of the object, and must not remove the parent's files.
    if os.getpid() == owner_pid:
        shutil.rmtree(path, ignore_errors=True)


class GuardedProcess:
    """A running child process, in a session of its own so that Ctrl-C does not reach it.

    Args:
        command: program and arguments.
        directory: its working directory; removed if this process ends before the child.
    """

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._log = directory / "server.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - test code names the program
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.paused = False
        # Two threads may pause or resume it at once, but only one of them is informed of a stop.
        self._pausing = threading.Lock()
        try:
            self._guard = subprocess.Popen(  # noqa: S603
                ["/bin/sh", "-c", _GUARD, "guard", str(self.pid), str(directory)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def running(self) -> bool:
        """Whether the process has not ended. A paused process (SIGSTOP) is running."""
        return self._process.poll() is None

    def log_tail(self) -> str:
        """The last lines of its output."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the end of the process; False if it did not end in time."""
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self, timeout_seconds: float) -> None:
        """Send SIGTERM, and SIGKILL if the process does not end in time; wait for its end."""
        if self.running:
            self._process.terminate()
            self.resume()
            self.wait(timeout_seconds)
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL and wait for the end. This has no effect on a process that has ended."""
        # The guard ends first: after the wait the system may reuse the process's number.
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Send SIGSTOP, and return when the process has stopped. Its sockets stay open."""
        with self._pausing:
            if self.running and not self.paused:
                self._process.send_signal(signal.SIGSTOP)
                with contextlib.suppress(ChildProcessError):  # Another thread has killed it.
                    os.waitpid(self.pid, os.WUNTRACED)
                self.paused = self.running

    def resume(self) -> None:
        """Send SIGCONT, the end of `pause`."""
        with self._pausing:
            self._process.send_signal(signal.SIGCONT)
            self.paused = False
