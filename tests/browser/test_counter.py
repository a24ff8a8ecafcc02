"""Drives examples/drf_counter in a real browser, with a token and without a cookie."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.ports import free_port

COUNTER = Path(__file__).resolve().parents[2] / "examples" / "drf_counter"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Its database, and the token of the one user there."""
    pytest.importorskip("rest_framework")
    database = str(tmp_path_factory.mktemp("counter") / "counter.sqlite3")
    made = subprocess.run(
        [sys.executable, "manage.py", "setup_demo"],
        cwd=COUNTER,
        env={**os.environ, "COUNTER_DATABASE": database},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return database, made.stdout.strip()


def count(page: Any) -> Any:
    return page.get_by_label("Count", exact=True)


def test_a_page_with_a_token_connects_and_one_without_does_not(
    kind: str, windows: Any, serving_example: Any, site: tuple[str, str], picture: Any
) -> None:
    from playwright.sync_api import expect

    database, token = site
    port = free_port()
    with serving_example("drf_counter", kind, port, COUNTER_DATABASE=database):
        pages = [windows.open().new_page() for _ in range(2)]
        for page in pages:
            page.goto(f"http://127.0.0.1:{port}/")
        pages[0].get_by_label("Token").fill("wrong")
        pages[0].get_by_role("button", name="Connect").click()
        expect(pages[0].get_by_text("The token is not valid, or no longer")).to_be_visible()
        assert windows.problems == []
        for page in pages:
            page.get_by_label("Token").fill(token)
            page.get_by_role("button", name="Connect").click()
            expect(count(page)).to_have_text(re.compile(r"\d+"))
        before = int(count(pages[0]).inner_text())
        pages[0].get_by_role("button", name="Add one").click()
        for page in pages:
            expect(count(page)).to_have_text(str(before + 1))
        # One that is opened while it counts shows the same in the end.
        late = windows.open().new_page()
        late.goto(f"http://127.0.0.1:{port}/")
        late.get_by_label("Token").fill(token)
        for _ in range(5):
            pages[0].get_by_role("button", name="Add one").click()
        late.get_by_role("button", name="Connect").click()
        for _ in range(5):
            pages[0].get_by_role("button", name="Add one").click()
        for page in (*pages, late):
            expect(count(page)).to_have_text(str(before + 11))
        pages[0].set_viewport_size({"width": 390, "height": 844})
        picture(pages[0], "counter-phone")
        windows.close()
