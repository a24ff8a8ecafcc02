"""Operators read the counters of a hub by the names that the documentation lists."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from django_sockets import open_hub
from django_sockets.delivery import events
from django_sockets.hub import HubStats
from django_sockets.hub.stats import GAP_COUNTERS, Counters

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "observability.md"
NAMES = [field.name for field in dataclasses.fields(Counters)]


def documented(kind: str) -> list[str]:
    """The names in the first column of the table of this kind."""
    table = PAGE.read_text(encoding="utf-8").partition(f"| {kind} | unit |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)


def test_the_tables_document_each_counter_and_nothing_else() -> None:
    assert sorted(documented("counter")) == sorted(NAMES)
    present = [name for name in HubStats.__annotations__ if name not in NAMES]
    assert documented("present number") == sorted(
        [*present, "wrapped_send <name>"], key=documented("present number").index
    )


def test_the_page_of_presence_has_all_of_its_counters() -> None:
    text = (DOCS / "presence.md").read_text(encoding="utf-8")
    table = text.partition("| counter | counts |")[2].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", table) == [name for name in NAMES if name.startswith("presence_")]


async def test_stats_begins_with_every_counter_at_zero() -> None:
    async with open_hub("memory://counters") as hub:
        assert hub.stats() == dict.fromkeys(HubStats.__annotations__, 0)
    assert set(NAMES) < set(HubStats.__annotations__)


def test_a_counter_that_does_not_exist_is_an_error_and_no_new_counter() -> None:
    counters = Counters()
    counters.add("gaps", 2)
    assert counters.gaps == 2
    with pytest.raises(AttributeError):
        counters.add("gasp")


@pytest.mark.parametrize(
    "reason",
    [*GAP_COUNTERS, "subscribing connection lost: [Errno 104]", "unsubscribed by the server", ""],
)
def test_the_gaps_of_all_reasons_add_up(reason: str) -> None:
    counters = Counters()
    counters.count_gap(reason)
    by_reason = {name: count for name, count in counters.as_dict().items() if name != "gaps"}
    assert counters.gaps == sum(by_reason.values()) == 1
    assert by_reason[GAP_COUNTERS.get(reason, "gaps_link")] == 1


def test_each_gap_reason_of_the_library_has_its_own_counter() -> None:
    """Otherwise an operator would look for a lost connection that never was."""
    reasons = {events.MISSED, events.LATE, events.VERSION, events.HISTORY, events.OVERFLOW}
    assert reasons < set(GAP_COUNTERS)
