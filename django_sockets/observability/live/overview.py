"""One picture of all processes, made from the answers to successive surveys.

The live page and `sockets top` show it. This module asks nothing and keeps no time of its own, so
that a test can play every case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypedDict

from ...hub.survey.asking import Answer, Answers
from ...hub.survey.report import LONGEST_LIST, ProcessReport, SlowClient

__all__ = ["Overview", "ProcessRow", "SlowRow", "Snapshot"]

GONE_SECONDS = 15.0
"""A process without an answer for this time is shown as gone. Its sockets are counted no more. Time
in which it could not be asked is not counted."""
FORGOTTEN_SECONDS = 300.0
"""A process that is gone or has ended is not shown any more after this time, counted likewise."""
MOST_PROCESSES = 1000
"""The most processes that are remembered. Further ones replace the one with the oldest answer."""

RATES = {
    "published": ("published",),
    "delivered": ("delivered",),
    "lost": ("dropped_overflow", "discarded"),
    "gaps": ("gaps",),
    "errors": ("publish_errors",),
}
"""Name of a rate -> the counters of `Hub.stats` that it sums."""


class ProcessRow(TypedDict):
    """One process.

    Attributes:
        status: "serving", "draining", "idle" or "ended", as the process has reported; "late" if
            it has not answered the last question in time; "gone" if it has not answered for
            `GONE_SECONDS`, such as a process that was killed.
        age_seconds: the time since its last answer.
        answer_seconds: the time that its last answer took; None for a farewell. A long time means
            that its event loop is busy.
        rates: events in each second, between its last two answers. The names are those of `RATES`.
        Other attributes: see `ProcessReport`.
    """

    process: str
    host: str
    pid: int
    status: str
    age_seconds: float
    answer_seconds: float | None
    started: float
    python: str
    version: str
    numbers: dict[str, int]
    rates: dict[str, float]


class SlowRow(SlowClient):
    """A slow client, and the host and process id of its server."""

    host: str
    pid: int


class Snapshot(TypedDict):
    """All processes at one time. It can be converted to JSON.

    Attributes:
        time: Unix time in seconds.
        broker: the URL of the broker, without secrets.
        interrupted: the asking process had lost its connection to the broker, so that processes
            may look late that are not.
        problem: the reason why no question could be asked; None normally.
        processes: the processes, those that need attention first.
        numbers: the sums over the processes that are not gone and have not ended.
        rates: likewise.
        sockets: name of a socket class -> open websockets.
        channels: the channels with the most subscribers. A process reports only its largest ones,
            so the number may be too low for a channel with few subscribers on each process.
        users: the users with the most connections; likewise.
        slow: the slow clients with the most waiting bytes.
    """

    time: float
    broker: str
    interrupted: bool
    problem: str | None
    processes: list[ProcessRow]
    numbers: dict[str, int]
    rates: dict[str, float]
    sockets: dict[str, int]
    channels: list[tuple[str, int]]
    users: list[tuple[str, int]]
    slow: list[SlowRow]


_ORDER = {"gone": 0, "late": 1, "draining": 2, "serving": 3, "idle": 4, "ended": 5}


class _Process:
    """The last answer of one process, and its rates."""

    def __init__(self, answer: Answer, now: float) -> None:
        self.report = answer.report
        self.at = now
        self.answer_seconds = answer.seconds
        self.in_time = answer.in_time
        self.rates = dict.fromkeys(RATES, 0.0)
        self.unasked_seconds = 0.0

    def silent_seconds(self, now: float) -> float:
        """The time without an answer in which it could be asked."""
        return now - self.at - self.unasked_seconds

    def take(self, answer: Answer, now: float) -> None:
        """Replace the last answer, unless this one is older."""
        old, new = self.report, answer.report
        if new["seconds"] < old["seconds"]:
            return
        passed = new["seconds"] - old["seconds"]
        if passed > 0:
            self.rates = {
                name: _sum(counters, new, old) / passed for name, counters in RATES.items()
            }
        self.report, self.at, self.unasked_seconds = new, now, 0.0
        self.answer_seconds, self.in_time = answer.seconds, answer.in_time

    def status(self, now: float) -> str:
        state = self.report["state"]
        if state in ("idle", "ended"):
            return state
        if self.silent_seconds(now) >= GONE_SECONDS:
            # A process that was shutting down has ended meanwhile, even if its farewell was lost.
            return "ended" if state == "draining" else "gone"
        return state if self.in_time else "late"

    def row(self, now: float) -> ProcessRow:
        report, counts = self.report, self.in_time and self.silent_seconds(now) < GONE_SECONDS
        return ProcessRow(
            process=report["process"],
            host=report["host"],
            pid=report["pid"],
            status=self.status(now),
            age_seconds=round(now - self.at, 1),
            answer_seconds=None if self.answer_seconds is None else round(self.answer_seconds, 3),
            started=report["started"],
            python=report["python"],
            version=report["version"],
            numbers=report["numbers"],
            rates={name: round(rate if counts else 0.0, 2) for name, rate in self.rates.items()},
        )


def _sum(counters: Iterable[str], new: ProcessReport, old: ProcessReport) -> int:
    """The increase of some counters. A hub that has ended takes its counters with it."""
    increase = sum(new["numbers"].get(one, 0) - old["numbers"].get(one, 0) for one in counters)
    return max(0, increase)


class Overview:
    """The processes that have answered.

    Args:
        broker: the URL of the broker, without secrets.
    """

    def __init__(self, broker: str) -> None:
        self._broker = broker
        self._processes: dict[str, _Process] = {}
        self._interrupted = False
        self._problem: str | None = None
        self._last: float | None = None

    def add(self, answers: Answers, now: float) -> None:
        """Add the result of one question.

        Args:
            now: seconds of a clock that never jumps, as for all calls.
        """
        self._interrupted, self._problem = answers.interrupted, None
        self._pass_time(now, could_ask=not answers.interrupted)
        for process in self._processes.values():
            process.in_time = False
        for answer in answers.answers:
            known = self._processes.get(answer.report["process"])
            if known is None:
                self._processes[answer.report["process"]] = _Process(answer, now)
            else:
                known.take(answer, now)
        self._forget(now)

    def failed(self, problem: str, now: float) -> None:
        """Record that no question could be asked. The processes keep their last state."""
        self._problem = problem
        self._pass_time(now, could_ask=False)
        self._forget(now)

    def _pass_time(self, now: float, *, could_ask: bool) -> None:
        """Note whether the time since the last call counts as silence of the processes."""
        if self._last is not None and not could_ask:
            for process in self._processes.values():
                process.unasked_seconds += now - self._last
        self._last = now

    def _forget(self, now: float) -> None:
        known = self._processes
        for name, process in list(known.items()):
            if process.silent_seconds(now) > FORGOTTEN_SECONDS and process.status(now) != "idle":
                del known[name]
        surplus = max(0, len(known) - MOST_PROCESSES)
        for name in sorted(known, key=lambda name: known[name].at)[:surplus]:
            del known[name]

    def snapshot(self, now: float, unix_time: float) -> Snapshot:
        """The present picture.

        Args:
            unix_time: the present Unix time in seconds.
        """
        numbers: Counter[str] = Counter()
        rates: Counter[str] = Counter()
        sockets: Counter[str] = Counter()
        channels: Counter[str] = Counter()
        users: Counter[str] = Counter()
        slow: list[SlowRow] = []
        rows = []
        for process in self._processes.values():
            row, report = process.row(now), process.report
            rows.append(row)
            if row["status"] in ("gone", "ended"):
                continue
            numbers.update(row["numbers"])
            for name, rate in row["rates"].items():
                rates[name] += rate  # type: ignore[assignment] # a Counter of floats
            sockets.update(report["sockets"])
            channels.update(dict(report["channels"]))
            users.update(dict(report["users"]))
            slow += [
                SlowRow(**client, host=report["host"], pid=report["pid"])
                for client in report["slow"]
            ]
        rows.sort(key=lambda row: (_ORDER.get(row["status"], 3), row["host"], row["pid"]))
        slow.sort(key=lambda client: -client["bytes"])
        return Snapshot(
            time=unix_time,
            broker=self._broker,
            interrupted=self._interrupted,
            problem=self._problem,
            processes=rows,
            numbers=dict(numbers),
            rates={name: round(rate, 2) for name, rate in rates.items()},
            sockets=dict(sockets.most_common()),
            channels=channels.most_common(LONGEST_LIST),
            users=users.most_common(LONGEST_LIST),
            slow=slow[:LONGEST_LIST],
        )
