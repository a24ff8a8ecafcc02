"""Texts of other programs and numbers, in a form that a terminal may show.

Names of channels, users, classes and hosts come from other processes, and often from their clients.
They must not steer the terminal, and each has to take as much space as it is given.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = [
    "as_bytes",
    "as_count",
    "as_duration",
    "as_latency",
    "as_rate",
    "beginning_of",
    "cell_width",
    "end_of",
    "escaped",
    "wrapped",
]

_WIDTH_UNCERTAIN = re.compile(
    "[\u115f-\u11ff\u2630-\u2637\u268a-\u268f\u3164\u4dc0-\u4dff\ufe00-\ufe0f\uffa0"
    "\U0001d300-\U0001d37f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff\U000e0100-\U000e01ef]"
)
"""Terminals give these different widths: they change the character before them, or their width is
different in another version of Unicode."""
_MOST_MARKS = 3
"""The most combining marks on one character. Piles of them cover other lines."""
_CUT = ".."


def escaped(text: str, encoding: str = "utf-8") -> str:
    """A text as one line without control characters.

    Characters that are invisible, that terminals show in different widths or that the encoding does
    not have are written as in a Python string, such as `\\x1b`.

    Args:
        encoding: the encoding of the terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    parts: list[str] = []
    marks = _MOST_MARKS  # A mark at the beginning would combine with what stands before the text.
    for character in text:
        marks = marks + 1 if _is_mark(character) else 0
        parts.append(
            character
            if marks <= _MOST_MARKS and _is_safe(character, encoding)
            else character.encode("unicode_escape").decode()
        )
    return "".join(parts)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def _is_safe(character: str, encoding: str) -> bool:
    if not character.isprintable() or _WIDTH_UNCERTAIN.match(character):
        return False
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def cell_width(text: str) -> int:
    """The number of cells that an escaped text takes in a terminal."""
    return len(text) if text.isascii() else sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if _is_mark(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def beginning_of(text: str, width: int) -> str:
    """The beginning of an escaped text, marked with ".." if it is not the whole text."""
    if cell_width(text) <= width:
        return text
    mark = _CUT[: max(0, width)]
    return text[: _fitting(text, width - len(mark))] + mark


def end_of(text: str, width: int) -> str:
    """The end of an escaped text, marked with ".." if it is not the whole text."""
    if cell_width(text) <= width:
        return text
    mark = _CUT[: max(0, width)]
    return mark + text[len(text) - _fitting(text[::-1], width - len(mark)) :].lstrip()


def _fitting(text: str, width: int) -> int:
    """The number of leading characters that fit into a width."""
    width = max(0, width)
    for index, character in enumerate(text):
        width -= _character_width(character)
        if width < 0:
            return index
    return len(text)


def wrapped(text: str, width: int, most_lines: int) -> list[str]:
    """An escaped text in lines, broken at spaces where possible. The last line may be cut."""
    lines: list[str] = []
    while cell_width(text) > width and len(lines) + 1 < most_lines:
        fits = max(1, _fitting(text, width))
        space = text.rfind(" ", 0, fits + 1)
        end = space if space > 0 else fits
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, beginning_of(text, width)]


def as_count(number: int) -> str:
    return f"{number:,}"


def as_rate(per_second: float) -> str:
    """Events in each second."""
    if per_second >= 100:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second else "0"


def as_bytes(size: int) -> str:
    """A number of bytes with a unit of powers of 1000."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:,.1f} TB"


def as_latency(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def as_duration(seconds: float) -> str:
    """A time in its two largest units, such as "3d 4h"."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m {whole % 60}s" if minutes else f"{whole}s"
