"""Pages with the browser client: bounds on waits, and what a page of numbers has shown."""

from __future__ import annotations

from typing import Any

__all__ = ["BACK_MS", "BACK_SECONDS", "in_order_or_gap", "shown", "wait_for"]

WAIT_SECONDS = 30
"""A bound on every wait. Three workers may share two cores."""
BACK_SECONDS = 90
"""A bound on a new connection: a page waits up to 30 s between two attempts."""
BACK_MS = 1000 * BACK_SECONDS


def wait_for(page: Any, expression: str, seconds: float = WAIT_SECONDS) -> None:
    page.wait_for_function(expression, timeout=seconds * 1000)


def shown(page: Any, last: int) -> list[Any]:
    """What tests/browser/pages/numbers.html has shown, once `last` is there.

    Each number comes once and in order, or a gap covers it.
    On the channel with a history, no number is missing, and there is no gap.
    """
    wait_for(page, f"kept.includes({last})")
    kept = page.evaluate("kept")
    assert "gap" not in kept, page.evaluate("[keptGaps, states]")
    assert kept == list(range(kept[0], kept[-1] + 1))
    found: list[Any] = page.evaluate("shown")
    in_order_or_gap(found)
    return found


def in_order_or_gap(found: list[Any]) -> None:
    before, covered = None, False
    for one in found:
        if one == "gap":
            covered = True
            continue
        assert before is None or one > before, f"{one} after {before}"
        assert before is None or one == before + 1 or covered, f"{before} to {one} without a gap"
        before, covered = one, False
