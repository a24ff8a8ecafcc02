"""The data of the live page at one moment, as JSON of a bounded size."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from ...observability.live.overview import ProcessRow, Snapshot

__all__ = ["MOST_ROWS", "picture_of"]

MOST_ROWS = 200
"""The most processes that a page lists. They are counted in the sums all the same."""
_NUMBERS = (
    "sockets",
    "event_streams",
    "slow_clients",
    "queued_bytes",
    "gaps",
    "publish_errors",
    "subscribers",
    "channels",
)
"""The numbers of each process. The page shows the sums of all others."""


def picture_of(snapshot: Snapshot, feed: str) -> bytes:
    """A snapshot as JSON text, with at most `MOST_ROWS` processes.

    Args:
        feed: the id of the feed, by which a page notices that another process serves it now.
    """
    rows = snapshot["processes"]
    picture: dict[str, Any] = {
        **snapshot,
        "feed": feed,
        "processes": [_row(row) for row in rows[:MOST_ROWS]],
        "statuses": dict(Counter(row["status"] for row in rows)),
        "hidden": max(0, len(rows) - MOST_ROWS),
    }
    return json.dumps(picture, separators=(",", ":")).encode()


def _row(row: ProcessRow) -> dict[str, Any]:
    numbers = row["numbers"]
    return {**row, "numbers": {name: numbers[name] for name in _NUMBERS if name in numbers}}
