"""`sockets top`: asks all processes again and again, and shows each picture."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import AsyncGenerator

from ...hub.hub import Hub
from ...hub.survey.asking import WINDOW_SECONDS, Survey
from ..live.overview import Overview, Snapshot
from ..live.watching import snapshots
from .picture import Page, Remarks, picture
from .tables import Line, plain

__all__ = ["top"]

REDRAW_SECONDS = 1.0
"""The longest time between two drawings, so that the screen follows the size of the terminal."""
PATIENCE_SECONDS = 2.0
"""A picture is overdue this long after it should have come."""
WIDTH_WITHOUT_TERMINAL = 200


async def top(
    hub: Hub, *, interval_seconds: float, once: bool, as_json: bool, note: str | None
) -> None:
    """Show all processes on a broker, until the task is cancelled.

    Output is JSON lines, the full screen of a terminal if rich is installed, or plain text.

    Args:
        hub: an open hub of that broker.
        interval_seconds: the time from one survey to the next one; 1 or more.
        once: end after one survey.
        as_json: print each snapshot as one line of JSON.
        note: a note to show on the full screen.

    Raises:
        BrokerError: with `once`: the broker is not usable. Otherwise the picture shows it.
        BrokerClosed: the hub was closed.
    """
    if once:
        _print(await _survey(hub), as_json, Remarks(has_rates=False))
        return
    found = snapshots(hub, interval_seconds=interval_seconds)
    async with contextlib.aclosing(found) as pictures:
        if not as_json and _has_screen():
            await _draw(hub, pictures, interval_seconds, note)
            return
        has_rates = False
        async for snapshot in pictures:
            _print(snapshot, as_json, Remarks(has_rates=has_rates))
            has_rates = has_rates or snapshot["problem"] is None
            if not as_json:
                print(flush=True)


async def _survey(hub: Hub) -> Snapshot:
    """The answers to one question."""
    overview = Overview(str(hub.config.url))
    async with Survey(hub) as survey:
        overview.add(await survey.ask(WINDOW_SECONDS), time.monotonic())
    return overview.snapshot(time.monotonic(), time.time())


def _print(snapshot: Snapshot, as_json: bool, remarks: Remarks) -> None:
    if as_json:
        text = json.dumps({"ok": snapshot["problem"] is None, **snapshot})
    else:
        # It regards the variable COLUMNS, too.
        width = shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 0)).columns
        page = Page(width, encoding=getattr(sys.stdout, "encoding", None) or "utf-8")
        text = "\n".join(map(plain, picture(snapshot, page, remarks)))
    print(text, flush=True)


def _has_screen() -> bool:
    try:
        from .screen import Screen
    except ImportError:  # rich is not installed.
        return False
    return Screen.usable()


async def _draw(
    hub: Hub, pictures: AsyncGenerator[Snapshot, None], interval_seconds: float, note: str | None
) -> None:
    from .screen import Screen

    view = _View(Overview(str(hub.config.url)).snapshot(0, time.time()), interval_seconds, note)
    with Screen(view.lines) as screen:
        screen.draw()
        while True:
            coming = asyncio.create_task(_next(pictures), name="django_sockets survey for top")
            try:
                while not coming.done():
                    await asyncio.wait([coming], timeout=REDRAW_SECONDS)
                    if coming.done():
                        view.take(coming.result())
                    screen.draw()
            finally:
                coming.cancel()
                await asyncio.wait([coming])


async def _next(pictures: AsyncGenerator[Snapshot, None]) -> Snapshot:
    return await anext(pictures)


class _View:
    """The newest snapshot, and how old it is."""

    def __init__(self, empty: Snapshot, interval_seconds: float, note: str | None) -> None:
        self._snapshot = empty
        self._interval_seconds = interval_seconds
        self._note = note
        self._answered = 0
        self._at = time.monotonic()

    def take(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._answered += snapshot["problem"] is None
        self._at = time.monotonic()

    def lines(self, page: Page) -> list[Line]:
        age = time.monotonic() - self._at
        is_late = age > self._interval_seconds + WINDOW_SECONDS + PATIENCE_SECONDS
        remarks = Remarks(self._note, self._answered > 1, age if is_late else 0)
        return picture(self._snapshot, page, remarks)
