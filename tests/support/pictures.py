"""Snapshots of processes that answer as a test says."""

from __future__ import annotations

from typing import Any

from django_sockets.hub.survey.asking import Answer, Answers
from django_sockets.hub.survey.report import ProcessReport
from django_sockets.observability.live.overview import Overview, Snapshot

__all__ = ["NOW", "answer", "report", "snapshot_of"]

NOW = 1_800_000_000.0
BROKER = "redis://:***@cache:6379"


def report(pid: int = 7, host: str = "web", **fields: Any) -> ProcessReport:
    """The report of one process, with these fields. Keywords of `numbers` are those of the hub."""
    numbers = {"sockets": 12, "channels": 3, **fields.pop("numbers", {})}
    found: dict[str, Any] = {
        "process": f"{host}:{pid}",
        "host": host,
        "pid": pid,
        "state": "serving",
        "started": NOW - 3725,
        "seconds": 3725.0,
        "python": "3.12.1",
        "version": "4.0.0",
        "numbers": numbers,
        "sockets": {},
        "channels": [],
        "users": [],
        "slow": [],
        **fields,
    }
    return ProcessReport(**found)  # type: ignore[typeddict-item]


def answer(one: ProcessReport, seconds: float | None = 0.012) -> Answer:
    return Answer(one, seconds, True)


def snapshot_of(*reports: ProcessReport, problem: str | None = None) -> Snapshot:
    """The picture after one question that all of these have answered."""
    overview = Overview(BROKER)
    overview.add(Answers([answer(one) for one in reports], interrupted=False), 1000.0)
    if problem is not None:
        overview.failed(problem, 1000.0)
    return overview.snapshot(1000.0, NOW)
