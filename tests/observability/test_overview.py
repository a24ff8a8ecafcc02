"""One picture of all processes from successive surveys: who is late, who is gone, and the sums.

If one of these fails, operators look for a fault in a process that works, or miss one that ended.
"""

from __future__ import annotations

from typing import Any

import pytest

from django_sockets.hub.survey.asking import Answer, Answers
from django_sockets.hub.survey.report import LONGEST_LIST, ProcessReport
from django_sockets.observability.live.overview import (
    FORGOTTEN_SECONDS,
    GONE_SECONDS,
    MOST_PROCESSES,
    Overview,
    ProcessRow,
    Snapshot,
)

UNIX_TIME = 1_800_000_000.0


def report(process: str = "a", seconds: float = 0, **values: Any) -> ProcessReport:
    one: ProcessReport = {
        "process": process,
        "host": "web1",
        "pid": 1,
        "state": "serving",
        "started": 0,
        "seconds": seconds,
        "python": "3.13.0",
        "version": "4.0",
        "numbers": {},
        "sockets": {},
        "channels": [],
        "users": [],
        "slow": [],
    }
    one.update(values)  # type: ignore[typeddict-item]
    return one


def answers(*reports: ProcessReport, in_time: bool = True, interrupted: bool = False) -> Answers:
    found = [Answer(one, 0.01 if in_time else 1.4, in_time) for one in reports]
    return Answers(found, interrupted)


def picture(overview: Overview, now: float) -> Snapshot:
    return overview.snapshot(now, UNIX_TIME)


def row(overview: Overview, now: float) -> ProcessRow:
    (one,) = picture(overview, now)["processes"]
    return one


@pytest.fixture
def overview() -> Overview:
    return Overview("memory://")


def test_a_killed_process_is_late_then_gone_then_forgotten(overview: Overview) -> None:
    overview.add(answers(report(numbers={"sockets": 5}, sockets={"Room": 5})), 0)
    assert row(overview, 0)["status"] == "serving"
    overview.add(answers(), 2)
    late = picture(overview, 2)
    assert (late["processes"][0]["status"], late["processes"][0]["age_seconds"]) == ("late", 2)
    assert late["numbers"] == {"sockets": 5}  # They may still be open.
    overview.add(answers(), GONE_SECONDS)
    gone = picture(overview, GONE_SECONDS)
    assert gone["processes"][0]["status"] == "gone"
    assert (gone["numbers"], gone["sockets"]) == ({}, {})
    assert gone["processes"][0]["numbers"] == {"sockets": 5}
    overview.add(answers(), FORGOTTEN_SECONDS)
    assert row(overview, FORGOTTEN_SECONDS)["status"] == "gone"
    overview.add(answers(), FORGOTTEN_SECONDS + 1)
    assert picture(overview, FORGOTTEN_SECONDS + 1)["processes"] == []


def test_a_late_answer_is_shown_as_late_with_its_time(overview: Overview) -> None:
    overview.add(answers(report(seconds=1)), 0)
    overview.add(answers(), 2)
    overview.add(answers(report(seconds=3), in_time=False), 4)
    late = row(overview, 4)
    assert (late["status"], late["answer_seconds"], late["age_seconds"]) == ("late", 1.4, 0)
    overview.add(answers(report(seconds=5)), 6)
    assert (row(overview, 6)["status"], row(overview, 6)["answer_seconds"]) == ("serving", 0.01)


def test_an_older_answer_never_replaces_a_newer_one(overview: Overview) -> None:
    overview.add(answers(report(seconds=9, numbers={"published": 9})), 0)
    overview.add(answers(report(seconds=7, numbers={"published": 7}), in_time=False), 2)
    assert row(overview, 2)["numbers"] == {"published": 9}


@pytest.mark.parametrize("state", ["idle", "ended", "draining"])
def test_a_process_that_says_why_it_is_silent_is_not_gone(overview: Overview, state: str) -> None:
    overview.add(answers(report(seconds=1)), 0)
    overview.add(Answers([Answer(report(seconds=2, state=state), None, True)], False), 2)
    assert row(overview, 2)["status"] == state
    overview.add(answers(), 2 + GONE_SECONDS)
    silent = row(overview, 2 + GONE_SECONDS)["status"]
    assert silent == ("idle" if state == "idle" else "ended")


def test_rates_are_those_between_two_answers_of_the_process(overview: Overview) -> None:
    """By the clock of the process: the answer may have been late."""
    overview.add(answers(report(seconds=10, numbers={"published": 100, "gaps": 1})), 0)
    assert row(overview, 0)["rates"]["published"] == 0
    both = {"published": 150, "gaps": 1, "dropped_overflow": 4, "discarded": 6}
    overview.add(answers(report(seconds=20, numbers=both), report("b", 5)), 2)
    one = next(row for row in picture(overview, 2)["processes"] if row["process"] == "a")
    assert one["rates"] == {"published": 5, "delivered": 0, "lost": 1, "gaps": 0, "errors": 0}
    assert picture(overview, 2)["rates"]["published"] == 5


def test_a_rate_is_never_negative(overview: Overview) -> None:
    """A hub that has ended takes its counters with it."""
    overview.add(answers(report(seconds=10, numbers={"published": 100})), 0)
    overview.add(answers(report(seconds=12, numbers={"published": 3})), 2)
    assert row(overview, 2)["rates"]["published"] == 0


def test_a_late_process_has_no_rate(overview: Overview) -> None:
    overview.add(answers(report(seconds=10)), 0)
    overview.add(answers(report(seconds=12, numbers={"published": 100})), 2)
    overview.add(answers(), 4)
    assert row(overview, 4)["rates"]["published"] == 0
    assert picture(overview, 4)["rates"]["published"] == 0


def test_the_lists_of_all_processes_are_summed_and_bounded(overview: Overview) -> None:
    slow = {"socket": "Room", "user": None, "messages": 1}
    overview.add(
        answers(
            report(
                "a", sockets={"Room": 2}, channels=[("x", 2)], users=[("7", 1)],
                slow=[{**slow, "bytes": size} for size in range(20)],
            ),
            report(
                "b", pid=2, sockets={"Room": 1, "Board": 9},
                channels=[("y", 9), ("x", 1), *((f"z{n}", 1) for n in range(30))],
                users=[("7", 4)], slow=[{**slow, "bytes": 99}],
            ),
        ),
        0,
    )  # fmt: skip
    found = picture(overview, 0)
    assert found["sockets"] == {"Board": 9, "Room": 3}
    assert found["channels"][:2] == [("y", 9), ("x", 3)]
    assert len(found["channels"]) == len(found["slow"]) == LONGEST_LIST
    assert found["users"] == [("7", 5)]
    assert (found["slow"][0]["bytes"], found["slow"][0]["pid"]) == (99, 2)


def test_processes_that_need_attention_come_first(overview: Overview) -> None:
    overview.add(answers(report("gone")), 0)
    overview.add(answers(report("late")), GONE_SECONDS - 1)
    states = [report("idle", state="idle"), report("ok"), report("leaving", state="draining")]
    overview.add(answers(*states), GONE_SECONDS)
    found = [one["process"] for one in picture(overview, GONE_SECONDS)["processes"]]
    assert found == ["gone", "late", "leaving", "ok", "idle"]


def test_a_problem_of_the_asking_process_is_told_and_ends(overview: Overview) -> None:
    overview.add(answers(report(), interrupted=True), 0)
    assert picture(overview, 0)["interrupted"]
    overview.failed("no connection", 2)
    assert picture(overview, 2)["problem"] == "no connection"
    overview.add(answers(report(seconds=2)), 4)
    assert picture(overview, 4)["problem"] is None
    assert not picture(overview, 4)["interrupted"]


def test_the_number_of_remembered_processes_is_bounded(overview: Overview) -> None:
    names: set[str] = set()
    for turn in range(4):
        overview.add(answers(*(report(f"{turn} {n}") for n in range(300))), turn)
        names = {one["process"] for one in picture(overview, turn)["processes"]}
        assert len(names) == min(300 * (turn + 1), MOST_PROCESSES)
    assert {name.partition(" ")[0] for name in names} == {"0", "1", "2", "3"}
    assert all(f"3 {n}" in names for n in range(300))
