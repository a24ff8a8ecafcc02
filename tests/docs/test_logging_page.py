"""docs/logging.md lists every message of the library. Alerts of operators are built on the list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from django_sockets.log import FIELDS
from support.log_calls import LogCall, log_calls, log_calls_in

PAGE = Path(__file__).resolve().parents[2] / "docs" / "logging.md"
ROW = re.compile(r"^\| `(.+?)` \| ([A-Z]+) \| (.*?) ?\| (.+) \|$", re.MULTILINE)

Listed = tuple[str, str, str]


def listed() -> list[Listed]:
    text = PAGE.read_text(encoding="utf-8")
    return [(template, level, names.strip()) for template, level, names, _ in ROW.findall(text)]


def in_the_code() -> set[Listed]:
    names: dict[tuple[str, str], set[str]] = {}
    for call in log_calls():
        names.setdefault((call.message, call.level), set()).update(call.fields)
    return {
        (message, level, ", ".join(sorted(fields))) for (message, level), fields in names.items()
    }


def test_the_page_lists_what_the_code_logs() -> None:
    on_page = listed()
    assert len(on_page) == len(set(on_page))
    assert set(on_page) == in_the_code()


def test_each_message_is_a_text_in_the_source() -> None:
    """A message that is put together at run time cannot be listed."""
    assert [call.place for call in log_calls() if not call.message or call.message == "%s"] == []


def test_the_attributes_are_those_of_every_record() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (table,) = re.findall(r"\| attribute \| value \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(FIELDS)
    used = {name for call in log_calls() for name in call.fields}
    assert used <= set(FIELDS)


@pytest.mark.parametrize(
    ("line", "level", "message", "fields"),
    [
        ('logger.warning("a %s", 1)', "WARNING", "a %s", ()),
        ('logger.exception("a")', "ERROR", "a", ()),
        ('_throttle.log(logging.INFO, "key", "a", extra={"socket": 1})', "INFO", "a", ("socket",)),
        ('self._throttle.log(logging.ERROR, "key", text)', "ERROR", "the last", ()),
        ('connection.note("counter", "a", 1009)', "INFO", "%s: a", ("code", "counter", "socket")),
        ("logger.error(unknown)", "ERROR", "", ()),
    ],
)
def test_a_planted_call_is_found(
    line: str, level: str, message: str, fields: tuple[str, ...]
) -> None:
    source = f'def f(self):\n    text = "the first"\n    text, key = "the last", 1\n    {line}\n'
    assert list(log_calls_in(source, "a.py")) == [LogCall("a.py:4", level, message, fields)]
