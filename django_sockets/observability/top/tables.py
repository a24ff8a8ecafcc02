"""Lines of styled text, and tables that fit a width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple, TypeAlias

from .text import beginning_of, cell_width

__all__ = [
    "GAP",
    "Cell",
    "Column",
    "Line",
    "Style",
    "beside",
    "cropped",
    "flow",
    "plain",
    "table",
    "width_beside",
]

Style: TypeAlias = Literal["", "title", "good", "busy", "warning", "bad", "faint"]
GAP = 2
"""Cells between two columns."""


class Cell(NamedTuple):
    """A text and its style. The text must be escaped."""

    text: str
    style: Style = ""


Line: TypeAlias = list[Cell]


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        heading: the text above it.
        cells: one for each row.
        importance: where not all columns fit, those with the smallest number stay.
        is_text: aligned left, and shortened to `least` cells where space is missing. Other columns
            are aligned right and never shortened.
        least: the smallest width of a text.
        cut: shortens a text.
    """

    heading: str
    cells: list[Cell]
    importance: int
    is_text: bool = False
    least: int = 0
    cut: Callable[[str, int], str] = beginning_of

    @property
    def natural_width(self) -> int:
        return max(map(cell_width, (self.heading, *(cell.text for cell in self.cells))))

    @property
    def smallest_width(self) -> int:
        return min(self.least, self.natural_width) if self.is_text else self.natural_width


def plain(line: Line) -> str:
    """A line without styles."""
    return "".join(cell.text for cell in line).rstrip()


def table(columns: Sequence[Column], width: int) -> list[Line]:
    """The heading and the rows of a table, without the columns that do not fit."""
    widths = _widths(columns, width)
    lines: list[Line] = []
    headings = [Cell(column.heading, "title") for column in columns]
    for row in (headings, *zip(*(column.cells for column in columns), strict=True)):
        line: Line = []
        for column, cell, cells in zip(columns, row, widths, strict=True):
            if cells is None:
                continue
            if line:
                line.append(Cell(" " * GAP))
            line.append(_aligned(column, cell, cells))
        lines.append(line)
    return lines


def _aligned(column: Column, cell: Cell, width: int) -> Cell:
    text = column.cut(cell.text, width)
    space = " " * (width - cell_width(text))
    return Cell(text + space if column.is_text else space + text, cell.style)


def _widths(columns: Sequence[Column], width: int) -> list[int | None]:
    """The width of each column; None for a column that is left out."""
    widths: list[int | None] = [None] * len(columns)
    left = width + GAP
    ranks = sorted(range(len(columns)), key=lambda index: columns[index].importance)
    for index in ranks:
        column = columns[index]
        needed = column.smallest_width + GAP
        if needed > left:
            if index == ranks[0]:  # The most important column is always there.
                widths[index] = max(1, width)
            break
        widths[index] = column.smallest_width
        left -= needed
    for index in ranks:
        given = widths[index]
        if given is not None and columns[index].is_text:
            more = max(0, min(left, columns[index].natural_width - given))
            widths[index] = given + more
            left -= more
    return widths


def beside(blocks: Sequence[list[Line]], width: int) -> list[Line]:
    """Blocks of lines side by side, each with this width."""
    lines: list[Line] = []
    for parts in zip_longest(*blocks, fillvalue=()):
        line: Line = []
        for index, part in enumerate(parts):
            if index:
                line.append(Cell(" " * (index * (width + GAP) - _width_of(line))))
            line += part
        lines.append(line)
    return lines


def width_beside(blocks: int, width: int) -> int:
    """The width of each of some blocks side by side."""
    return (width - GAP * (blocks - 1)) // blocks


def _width_of(line: Iterable[Cell]) -> int:
    return sum(cell_width(cell.text) for cell in line)


def cropped(line: Line, width: int) -> Line:
    """A line without the part that is over a width."""
    if _width_of(line) <= width:
        return line
    kept: Line = []
    for cell in line:
        left = width - _width_of(kept)
        kept.append(Cell(beginning_of(cell.text, left), cell.style))
        if cell_width(cell.text) > left:
            break
    return kept


def flow(parts: Iterable[Line], width: int) -> list[Line]:
    """Parts one after the other, in as many lines as they need. A part is not divided."""
    lines: list[Line] = []
    left = 0
    for part in parts:
        needed = _width_of(part)
        if lines and needed + GAP <= left:
            lines[-1] += [Cell(" " * GAP), *part]
            left -= needed + GAP
        else:
            lines.append(list(part))
            left = width - needed
    return lines
