"""A snapshot of all processes as lines of styled text that fit a page. It needs no terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..live.overview import RATES, ProcessRow, Snapshot
from .tables import Cell, Column, Line, Style, beside, cropped, flow, table, width_beside
from .text import (
    as_bytes,
    as_count,
    as_duration,
    as_latency,
    as_rate,
    beginning_of,
    end_of,
    escaped,
    wrapped,
)

__all__ = ["Page", "Remarks", "picture"]

STYLES: dict[str, Style] = {
    "serving": "good",
    "draining": "busy",
    "late": "warning",
    "gone": "bad",
    "idle": "faint",
    "ended": "faint",
}
NOBODY = (
    "No process has answered. Processes with open websockets or streams answer, and those that "
    "have called answer_surveys()."
)
INTERRUPTED = (
    "The connection to the broker was lost for a moment. Processes may look late that are not."
)
SIDE_BY_SIDE_CELLS = 75
"""The width from which on the lists stand side by side."""
HEADING_LINES = 2
"""The heading of a section, and the empty line above it."""


class Page(NamedTuple):
    """The room for a picture.

    Attributes:
        width: in cells.
        height: in lines; None without a limit.
        encoding: characters that it does not have are escaped.
    """

    width: int
    height: int | None = None
    encoding: str = "utf-8"

    def escaped(self, text: str) -> str:
        return escaped(text, self.encoding)


class Remarks(NamedTuple):
    """Remarks about a snapshot.

    Attributes:
        note: a note about the broker.
        has_rates: there was an earlier snapshot, so that rates are known.
        seconds_without_answer: the time for which the broker has not answered; 0 normally.
    """

    note: str | None = None
    has_rates: bool = True
    seconds_without_answer: float = 0


class _Section(NamedTuple):
    """A part of the picture that can be shown in fewer lines.

    Attributes:
        rows: the number of its rows.
        lines: makes the heading and at most this many rows.
    """

    rows: int
    lines: Callable[[int], list[Line]]


def picture(snapshot: Snapshot, page: Page, remarks: Remarks | None = None) -> list[Line]:
    """A snapshot as lines that are not wider than the page, and not more than its height.

    Narrow pages have fewer columns, and low ones fewer rows with a line such as "and 12 more".
    """
    remarks = remarks or Remarks()
    lines = _head(snapshot, page, remarks) + _totals(snapshot, page, remarks)
    sections = _sections(snapshot, page, remarks)
    left = None if page.height is None else page.height - len(lines)
    for section, rows in zip(sections, _rows_of_sections(sections, left), strict=True):
        if rows:
            lines += [[], *section.lines(rows)]
    return [cropped(line, page.width) for line in lines[: page.height]]


def _rows_of_sections(sections: Sequence[_Section], lines: int | None) -> list[int]:
    """The number of rows of each section. Sections without room for two rows get none."""
    if lines is None:
        return [section.rows for section in sections]
    for count in range(len(sections), 0, -1):  # The last sections are the least important.
        given = _shared([one.rows for one in sections[:count]], lines - HEADING_LINES * count)
        if all(rows >= min(2, one.rows) for rows, one in zip(given, sections, strict=False)):
            return given + [0] * (len(sections) - count)
    return [0] * len(sections)


def _shared(wanted: Sequence[int], rows: int) -> list[int]:
    """Give rows to sections in turns, two to the first one.

    A section that needs few rows leaves the others to the longer ones.
    """
    given = [0] * len(wanted)
    turns = [0, *range(len(wanted))]
    while rows > 0 and given != [*wanted]:
        for number in turns:
            if rows > 0 and given[number] < wanted[number]:
                given[number] += 1
                rows -= 1
    return given


# The lines at the top


def _head(snapshot: Snapshot, page: Page, remarks: Remarks) -> list[Line]:
    statuses = Counter(row["status"] for row in snapshot["processes"])
    number = len(snapshot["processes"])
    processes: Line = [Cell(f"{number} process{'' if number == 1 else 'es'}")]
    for status, count in statuses.items():
        processes += [
            Cell(": " if len(processes) == 1 else ", "),
            Cell(f"{count} {page.escaped(status)}", STYLES.get(status, "")),
        ]
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot["time"]))
    broker = beginning_of(page.escaped(snapshot["broker"]), page.width)
    lines = flow([[Cell(broker, "title")], processes, [Cell(clock)]], page.width)
    for style, text in _messages(snapshot, remarks):
        lines += [[Cell(part, style)] for part in wrapped(page.escaped(text), page.width, 3)]
    return lines


def _messages(snapshot: Snapshot, remarks: Remarks) -> list[tuple[Style, str]]:
    messages: list[tuple[Style, str]] = []
    if snapshot["problem"] is not None:
        messages.append(("bad", f"problem: {snapshot['problem']}"))
    if snapshot["interrupted"]:
        messages.append(("bad", INTERRUPTED))
    if remarks.seconds_without_answer:
        waited = as_duration(remarks.seconds_without_answer)
        messages.append(("bad", f"The broker has not answered for {waited}."))
    if remarks.note is not None:
        messages.append(("warning", remarks.note))
    if not snapshot["processes"] and snapshot["problem"] is None:
        messages.append(("", NOBODY))
    return messages


def _totals(snapshot: Snapshot, page: Page, remarks: Remarks) -> list[Line]:
    numbers, rates = snapshot["numbers"], snapshot["rates"]

    def number(name: str) -> int:
        return numbers.get(name, 0)

    def rated(title: str, name: str, style: Style = "") -> Line:
        """A counter and its rate. The style is used while it rises."""
        count = sum(map(number, RATES[name]))
        rate = rates.get(name, 0)
        if not remarks.has_rates:
            return [Cell(f"{title} {as_count(count)}", style if count else "")]
        return [Cell(f"{title} {as_count(count)} ({as_rate(rate)}/s)", style if rate else "")]

    slow = number("slow_clients")
    totals: list[Line] = [
        [Cell("sockets "), Cell(as_count(number("sockets")), "title")],
        [Cell(f"streams {as_count(number('event_streams'))}")],
        rated("published", "published"),
        rated("delivered", "delivered"),
        rated("lost", "lost", "warning"),
        rated("gaps", "gaps", "warning"),
        rated("publish errors", "errors", "bad"),
        [Cell(f"slow clients {as_count(slow)}", "warning" if slow else "")],
        [Cell(f"queued {as_bytes(number('queued_bytes'))}")],
    ]
    return flow(totals, page.width)


# The sections


def _sections(snapshot: Snapshot, page: Page, remarks: Remarks) -> list[_Section]:
    lists = [
        ("sockets by class", [*snapshot["sockets"].items()]),
        ("channels by subscribers", snapshot["channels"]),
        ("users by connections", snapshot["users"]),
    ]
    filled = [(title, rows) for title, rows in lists if rows]
    sections = []
    if snapshot["processes"]:
        processes = len(snapshot["processes"])
        sections.append(_Section(processes, lambda rows: _processes(snapshot, page, remarks, rows)))
    if snapshot["slow"]:
        sections.append(_Section(len(snapshot["slow"]), lambda rows: _slow(snapshot, page, rows)))
    if not filled:
        return sections
    if page.height is not None and page.width >= SIDE_BY_SIDE_CELLS:
        longest = max(len(rows) for _, rows in filled)
        each = width_beside(len(lists), page.width)

        def side_by_side(rows: int) -> list[Line]:
            narrow = page._replace(width=each)
            return beside([_counts(*one, narrow, rows) for one in filled], each)

        return [*sections, _Section(longest, side_by_side)]
    for title, items in filled:
        sections.append(_Section(len(items), _counts_of(title, items, page)))
    return sections


def _more(shown: int, total: int) -> list[Line]:
    return [[Cell(f"and {as_count(total - shown)} more", "faint")]] if shown < total else []


def _shown(rows: int, total: int) -> int:
    """The number of items in some rows; the last row may be needed for "and 12 more"."""
    return total if total <= rows else rows - 1


def _processes(snapshot: Snapshot, page: Page, remarks: Remarks, rows: int) -> list[Line]:
    total = len(snapshot["processes"])
    shown = snapshot["processes"][: _shown(rows, total)]

    def cells(text: Callable[[ProcessRow], str]) -> list[Cell]:
        return [
            Cell(text(row), "faint" if row["status"] in ("gone", "ended") else "") for row in shown
        ]

    def number(name: str) -> list[Cell]:
        return cells(lambda row: as_count(row["numbers"].get(name, 0)))

    def rate(name: str) -> list[Cell]:
        return cells(lambda row: as_rate(row["rates"].get(name, 0)) if remarks.has_rates else "-")

    def uptime(row: ProcessRow) -> str:
        return as_duration(snapshot["time"] - row["age_seconds"] - row["started"])

    statuses = [Cell(page.escaped(row["status"]), STYLES.get(row["status"], "")) for row in shown]
    columns = [
        Column("status", statuses, 0, is_text=True, least=8),
        Column("process", cells(lambda row: _process(row, page)), 1, True, 16, end_of),
        Column("age", cells(lambda row: as_duration(row["age_seconds"])), 3),
        Column("answer", cells(lambda row: as_latency(row["answer_seconds"])), 10),
        Column("uptime", cells(uptime), 11),
        Column("sockets", number("sockets"), 2),
        Column("streams", number("event_streams"), 12),
        Column("channels", number("channels"), 8),
        Column("published/s", rate("published"), 5),
        Column("delivered/s", rate("delivered"), 4),
        Column("gaps", number("gaps"), 6),
        Column("slow", number("slow_clients"), 7),
        Column("queued", cells(lambda row: as_bytes(row["numbers"].get("queued_bytes", 0))), 9),
        Column("version", cells(lambda row: page.escaped(row["version"])), 13),
    ]
    return table(columns, page.width) + _more(len(shown), total)


def _process(row: ProcessRow, page: Page) -> str:
    return f"{page.escaped(row['host'])}:{row['pid']}"


def _slow(snapshot: Snapshot, page: Page, rows: int) -> list[Line]:
    total = len(snapshot["slow"])
    shown = snapshot["slow"][: _shown(rows, total)]
    columns = [
        Column("slow client", [Cell(as_bytes(row["bytes"]), "warning") for row in shown], 0),
        Column("messages", [Cell(as_count(row["messages"])) for row in shown], 4),
        Column("class", [Cell(page.escaped(row["socket"])) for row in shown], 1, True, 12),
        Column("user", [Cell(page.escaped(row["user"] or "-")) for row in shown], 2, True, 12),
        Column(
            "process",
            [Cell(f"{page.escaped(row['host'])}:{row['pid']}") for row in shown],
            *(3, True, 16, end_of),
        ),
    ]
    return table(columns, page.width) + _more(len(shown), total)


def _counts_of(
    title: str, items: Sequence[tuple[str, int]], page: Page
) -> Callable[[int], list[Line]]:
    return lambda rows: _counts(title, items, page, rows)


def _counts(title: str, items: Sequence[tuple[str, int]], page: Page, rows: int) -> list[Line]:
    """Names and their counts under a title."""
    shown = items[: _shown(rows, len(items))]
    counts = [as_count(count) for _, count in shown]
    width = max(map(len, counts), default=0)
    lines: list[Line] = [[Cell(beginning_of(title, page.width), "title")]]
    for (name, _), count in zip(shown, counts, strict=True):
        space = page.width - width - 2
        lines.append([Cell(f"{count:>{width}}  {beginning_of(page.escaped(name), space)}")])
    return lines + _more(len(shown), len(items))
