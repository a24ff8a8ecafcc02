"""Operators read the counters of a hub by the names that the documentation lists."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from django_sockets import open_hub
from django_sockets.hub.stats import Counters

LIMITS = Path(__file__).resolve().parents[2] / "docs" / "limits.md"
NAMES = [field.name for field in dataclasses.fields(Counters)]


@pytest.mark.parametrize("name", NAMES)
def test_every_counter_is_documented(name: str) -> None:
    assert f"`{name}`" in LIMITS.read_text(encoding="utf-8")


async def test_stats_begins_with_every_counter_at_zero() -> None:
    async with open_hub("memory://counters") as hub:
        names = ["sockets", "sockets_with_frames", "event_streams", "channels", "subscribers"]
        present = dict.fromkeys(names, 0)
        assert hub.stats() == {**dict.fromkeys(NAMES, 0), **present}


def test_a_counter_that_does_not_exist_is_an_error_and_no_new_counter() -> None:
    counters = Counters()
    counters.add("gaps", 2)
    assert counters.gaps == 2
    with pytest.raises(AttributeError):
        counters.add("gasp")
