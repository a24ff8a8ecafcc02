"""A record has the attributes that the page of log messages promises, and cannot forge lines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from django_sockets.log import FIELDS, LogThrottle

LOGGER = logging.getLogger("django_sockets")
FORGED = "2026-11-28 ERROR root: forged"


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    handler = Records()
    LOGGER.addHandler(handler)
    yield handler.records
    LOGGER.removeHandler(handler)


def values(record: logging.LogRecord) -> dict[str, Any]:
    return {name: record.__dict__[name] for name in FIELDS if record.__dict__[name] is not None}


def test_a_record_without_attributes_has_them_as_none(records: list[logging.LogRecord]) -> None:
    LOGGER.warning("something %s", "happened")
    assert values(records[0]) == {"template": "something %s"}
    form = " ".join(f"%({name})s" for name in FIELDS if name != "template")
    assert set(logging.Formatter(form).format(records[0]).split()) == {"None"}


def test_attributes_of_a_record_are_numbers_and_texts(records: list[logging.LogRecord]) -> None:
    extra = {"channel": "room", "code": 1009, "seconds": 0.5, "reason": ValueError("why")}
    LOGGER.warning("something", extra=extra)
    expected = {**extra, "reason": "why", "template": "something"}
    assert values(records[0]) == expected
    json.dumps(values(records[0]))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a\n{FORGED}", rf"a\n{FORGED}"),
        ("\x1b[2J\x07\r", r"\x1b[2J\x07\r"),
        ("\u202e\u2028\x85", r"\u202e\u2028\x85"),
        ("é", "é"),
    ],
)
def test_attributes_are_escaped(records: list[logging.LogRecord], text: str, shown: str) -> None:
    LOGGER.warning("something", extra={"path": text})
    assert values(records[0])["path"] == shown


def test_attributes_are_shortened(records: list[logging.LogRecord]) -> None:
    LOGGER.warning("something", extra={"path": "/" + "a" * 1024 * 1024})
    assert len(values(records[0])["path"]) < 2100


def test_a_throttled_record_tells_how_many_were_left_out(
    records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("django_sockets.log.time.monotonic", lambda: now[0])
    throttle = LogThrottle(LOGGER, 10)
    for _ in range(4):
        throttle.log(logging.WARNING, "key", "lost %s", "a", extra={"socket": "Room"})
    now[0] = 11.0
    throttle.log(logging.WARNING, "key", "lost %s", "b", extra={"socket": "Room"})
    assert [values(record) for record in records] == [
        {"socket": "Room", "template": "lost %s"},
        {"socket": "Room", "template": "lost %s", "repeats": 3},
    ]
    assert records[1].getMessage() == "lost b (3 more like this since the last time)"


def logged(exc: BaseException, records: list[logging.LogRecord]) -> list[str]:
    """The lines of a record with a traceback, without its message."""
    LOGGER.error("failed", exc_info=exc)
    message, *lines = logging.Formatter().format(records[0]).split("\n")
    assert message == "failed"
    return lines


def raised(exc: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise exc from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    "text", [f"a\n{FORGED}", f"a\r{FORGED}", "a\x1b[31m", f"a\u2028{FORGED}", "a\n" * 100_000]
)
def test_the_text_of_an_exception_is_one_line_of_bounded_length(
    records: list[logging.LogRecord], text: str
) -> None:
    lines = logged(raised(LookupError(text), raised(ValueError(text))), records)
    assert all(line.isprintable() and len(line) < 2100 for line in lines)
    assert not [line for line in lines if line.startswith(FORGED)]
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("LookupError: a\\")
    assert [line for line in lines if line.startswith("ValueError: a\\")]
    assert [line for line in lines if line.startswith("  File ")]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes are new in Python 3.11")
def test_a_note_of_an_exception_cannot_forge_a_line(records: list[logging.LogRecord]) -> None:
    exc = raised(LookupError("a"))
    exc.add_note(f"note\n{FORGED}")  # type: ignore[attr-defined,unused-ignore]
    assert not [line for line in logged(exc, records) if line.startswith(FORGED)]


def test_a_very_long_traceback_is_shortened(records: list[logging.LogRecord]) -> None:
    exc = raised(ValueError("a\n"))
    for _ in range(500):
        exc = raised(LookupError("a\n"), exc)
    assert len("\n".join(logged(exc, records))) < 21_000


def test_a_harmless_traceback_is_left_to_the_formatter(
    records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", False)  # pytest's formatter would come first.

    class Short(logging.Formatter):
        def formatException(self, ei: Any) -> str:  # noqa: N802
            return f"({ei[0].__name__})"

    LOGGER.error("failed", exc_info=raised(LookupError("a")))
    assert Short().format(records[0]) == "failed\n(LookupError)"
