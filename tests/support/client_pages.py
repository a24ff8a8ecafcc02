"""What tests of the browser client ask a page of `support.client_app`."""

from __future__ import annotations

from typing import Any

__all__ = ["in_order_or_gap", "wait_for"]


def wait_for(page: Any, expression: str, seconds: float = 30) -> None:
    page.wait_for_function(expression, timeout=seconds * 1000)


def in_order_or_gap(found: list[Any]) -> None:
    """Each number comes once and in order, or a gap covers it."""
    before, covered = None, False
    for one in found:
        if one == "gap":
            covered = True
            continue
        assert before is None or one > before, f"{one} after {before}"
        assert before is None or one == before + 1 or covered, f"{before} to {one} without a gap"
        before, covered = one, False
