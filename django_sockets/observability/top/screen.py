"""The full screen: lines of styled text, drawn by rich on the alternate screen of a terminal.

The terminal is restored at the end: after Ctrl-C, an error, SIGTERM, SIGHUP and SIGQUIT, and while
the program is suspended by Ctrl-Z. It must be used on the main thread of the process for the
signals to have this effect.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .picture import Page
from .tables import Line, Style

__all__ = ["Screen", "rich_text"]

RICH_STYLES: dict[Style, str] = {
    "": "none",
    "title": "bold",
    "good": "green",
    "busy": "cyan",
    "warning": "yellow",
    "bad": "bold red",
    "faint": "dim",
}
ENDING = ("SIGTERM", "SIGHUP", "SIGQUIT")
SUSPENDING = "SIGTSTP"


def rich_text(lines: list[Line]) -> Text:
    """Lines as rich shows them. Text is never read as rich's markup."""
    return Text("\n", no_wrap=True, overflow="crop", end="").join(
        Text.assemble(*((cell.text, RICH_STYLES[cell.style]) for cell in line)) for line in lines
    )


class Screen:
    """A terminal on its alternate screen, for the length of a `with`. It must be usable.

    Args:
        lines: makes the lines to draw on a page.
    """

    def __init__(self, lines: Callable[[Page], list[Line]]) -> None:
        self._lines = lines
        self._console = Console(file=sys.stdout, highlight=False)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._handled: list[int] = []

    @staticmethod
    def usable() -> bool:
        """Whether standard output is a terminal with an alternate screen."""
        if not sys.stdout.isatty():
            return False
        console = Console(file=sys.stdout)
        return console.is_terminal and not (console.is_dumb_terminal or console.legacy_windows)

    def __enter__(self) -> Screen:
        self._handle_signals()
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._live.stop()
        finally:
            self._release_signals()

    def draw(self) -> None:
        """Draw the present lines."""
        size = self._console.size
        lines = self._lines(Page(size.width, size.height, self._console.encoding))
        self._live.update(rich_text(lines), refresh=True)

    # Signals

    def _handle_signals(self) -> None:
        """Handle the signals that have their default effect, on the event loop.

        The handler of a signal may run in the middle of a write to the terminal. The loop runs the
        callback when the write has ended.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for name in (*ENDING, SUSPENDING):
            number = getattr(signal, name, None)  # Windows has few of them.
            if number is None or signal.getsignal(number) is not signal.SIG_DFL:
                continue
            act = self._suspend if name == SUSPENDING else self._end

            def handle(
                number: int, frame: FrameType | None, act: Callable[[int], None] = act
            ) -> None:
                loop.call_soon_threadsafe(partial(act, number))

            signal.signal(number, handle)
            self._handled.append(number)

    def _release_signals(self) -> None:
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL)
        self._handled.clear()

    def _end(self, number: int) -> None:
        """Restore the terminal, and let the signal end the process."""
        try:
            self._live.stop()
        finally:
            self._release_signals()
            signal.raise_signal(number)

    def _suspend(self, number: int) -> None:
        """Restore the terminal, let the signal stop the process, and draw again after it."""
        self._live.stop()
        self._release_signals()
        signal.raise_signal(number)  # It returns when the process goes on.
        self._handle_signals()
        self._live.start()
        self.draw()
