"""A program in a pseudo terminal, and the pictures that it has drawn there."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

__all__ = ["ENTERED", "HIDDEN", "LEFT", "SHOWN", "TerminalProcess", "in_terminal"]

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"
"""What a program writes to enter the alternate screen, and to leave it."""
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
"""What a program writes to hide the cursor, and to show it."""
HOME = "\x1b[H"
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
WAIT_SECONDS = 60


class TerminalProcess:
    """The process, and the terminal that it runs in."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int, own_side: int) -> None:
        self.process = process
        self._terminal, self._own_side = terminal, own_side
        self.modes_before = termios.tcgetattr(terminal)
        self.written = ""

    @property
    def modes(self) -> list[object]:
        return termios.tcgetattr(self._terminal)

    def resize(self, width: int, height: int) -> None:
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(self._own_side, termios.TIOCSWINSZ, size)

    def type(self, keys: str) -> None:
        os.write(self._own_side, keys.encode())

    def pictures(self) -> list[str]:
        """All complete pictures on the alternate screen, the oldest first, without colours."""
        drawn = [SEQUENCE.sub("", part) for part in self.written.split(HOME)[1:-1]]
        return ["\n".join(line.rstrip() for line in one.splitlines()) for one in drawn]

    def _read(self, seconds: float) -> bool:
        if not select.select([self._own_side], [], [], seconds)[0]:
            return False
        try:
            self.written += os.read(self._own_side, 65536).decode(errors="replace")
        except OSError:  # No process has the terminal any more.
            return False
        return True

    async def until(self, seen: Callable[[str], object]) -> str:
        """Wait until a new picture is like this, and return it."""
        first = len(self.pictures())
        ends = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < ends:
            await asyncio.to_thread(self._read, 0.5)
            for picture in self.pictures()[first:]:
                first += 1
                if seen(picture):
                    return picture
            assert self.process.poll() is None, f"it ended:\n{self.written}"
        raise AssertionError(f"no picture is like this:\n{self.written[-5000:]}")

    async def until_written(self, text: str, times: int = 1) -> None:
        ends = time.monotonic() + WAIT_SECONDS
        while self.written.count(text) < times:
            assert time.monotonic() < ends, f"{text!r} was not written:\n{self.written}"
            await asyncio.to_thread(self._read, 0.5)

    async def stopped(self) -> None:
        """Wait until a signal has stopped the process."""
        while True:
            options = os.WUNTRACED | os.WNOHANG
            _, status = os.waitpid(self.process.pid, options)  # noqa: ASYNC222 - not with WNOHANG
            if os.WIFSTOPPED(status):
                return
            assert self.process.poll() is None, f"it ended:\n{self.written}"
            await asyncio.to_thread(self._read, 0.05)

    async def ended(self) -> int:
        """Wait for the end of the process, and return its status; negative after a signal."""
        ends = time.monotonic() + WAIT_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < ends, f"it does not end:\n{self.written}"
            await asyncio.to_thread(self._read, 0.1)
        while await asyncio.to_thread(self._read, 0.0):
            pass
        return self.process.wait()


@contextlib.asynccontextmanager
async def in_terminal(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    width: int = 100,
    height: int = 30,
    is_job: bool = False,
) -> AsyncIterator[TerminalProcess]:
    """Run a program in a new terminal. It is killed at the end.

    Args:
        is_job: it is a job of this process, as of a shell, so that SIGTSTP stops it. Otherwise the
            terminal is its own, so that Ctrl-C ends it.
    """
    own_side, terminal = pty.openpty()
    fcntl.ioctl(own_side, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def prepare() -> None:
        if is_job:
            os.setpgid(0, 0)
        else:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(  # noqa: ASYNC220 - it takes a moment
        command,
        env=dict(environment),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=prepare,
    )
    try:
        yield TerminalProcess(process, terminal, own_side)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        os.close(terminal)
        os.close(own_side)
