"""A newcomer who follows a table of CONTRIBUTING.md finds the file at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| (.+?) \| (.+) \|$",
    PAGE.partition("## Where to change what")[2].partition("## Rooms and doors")[0],
    re.MULTILINE,
)[1:]


def test_the_table_answers_the_questions_of_a_newcomer() -> None:
    tasks = " / ".join(task for task, _ in ROWS)
    for word in (
        "scheme",
        "envelope",
        "JSON",
        "command",
        "counter",
        "policy",
        "MOVED",
        "close code",
    ):
        assert word in tasks


@pytest.mark.parametrize(("task", "places"), ROWS)
def test_each_place_exists(task: str, places: str) -> None:
    paths = [name for name in re.findall(r"`([^`]+)`", places) if "/" in name]
    assert paths, task
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_module_of_the_clients_table_exists_and_none_is_missing() -> None:
    table = PAGE.partition("From bottom to top:")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+\.py)`", table))
    modules = {path.name for path in (ROOT / "backends/client").glob("*.py")} - {"__init__.py"}
    assert named == modules
