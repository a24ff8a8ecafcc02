"""A problem that occurs very often is logged once per interval, with the number of the others."""

from __future__ import annotations

import logging

import pytest

from django_sockets import log
from django_sockets.log import LogThrottle


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def test_the_same_key_is_logged_once_per_interval(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    throttle = LogThrottle(logging.getLogger("test"), 10)
    for _ in range(5):
        throttle.log(logging.WARNING, "lost", "lost %s", "a")
    throttle.log(logging.WARNING, "other", "other")
    clock[0] += 9.9
    throttle.log(logging.WARNING, "lost", "lost %s", "b")
    clock[0] += 0.2
    throttle.log(logging.WARNING, "lost", "lost %s", "c")
    throttle.log(logging.WARNING, "lost", "lost %s", "d")
    clock[0] += 11
    throttle.log(logging.WARNING, "other", "other")
    assert caplog.messages == [
        "lost a",
        "other",
        "lost c (5 more like this since the last time)",
        "other",
    ]


def test_the_first_message_is_not_held_back(caplog: pytest.LogCaptureFixture) -> None:
    LogThrottle(logging.getLogger("test"), 1e9).log(logging.ERROR, "key", "100%")
    assert caplog.messages == ["100%"]


def test_ever_new_keys_take_no_ever_growing_memory(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    throttle = LogThrottle(logging.getLogger("test"), 10)
    for i in range(5000):
        throttle.log(logging.WARNING, f"key {i}", "x")
    assert len(throttle._seen) <= 1024
    assert len(caplog.messages) == 5000
