"""Drives examples/drf_counter in a real browser, with a token and without a cookie."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.ports import free_port
from support.client_pages import BACK_MS

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
        timeout=150,
    )
    return database, made.stdout.strip()


def manage(database: str, code: str) -> None:
    """Run code in another process of the project."""
    subprocess.run(
        [sys.executable, "manage.py", "shell", "-c", code],
        cwd=COUNTER,
        env={**os.environ, "COUNTER_DATABASE": database},
        check=True,
        timeout=150,
    )


def count(page: Any) -> Any:
    return page.get_by_label("Count", exact=True)


def test_a_page_with_a_token_connects_and_one_without_does_not(
    kind: str, windows: Any, serving_example: Any, site: tuple[str, str], picture: Any
) -> None:
    from playwright.sync_api import expect

    database, token = site
    port = free_port()
    with serving_example("drf_counter", kind, port, COUNTER_DATABASE=database), windows:
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


def test_a_page_comes_back_after_a_restart_and_not_without_its_token(
    windows: Any, serving_example: Any, site: tuple[str, str], kind: str, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    if kind != "uvicorn":
        pytest.skip("the page does the same behind each server")
    database, token = str(tmp_path / "counter.sqlite3"), site[1]
    shutil.copy(site[0], database)
    port = free_port()
    page = windows.open().new_page()
    windows.expected = r"WebSocket connection to .* failed"
    with serving_example("drf_counter", kind, port, COUNTER_DATABASE=database) as server:
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Connect").click()
        expect(count(page)).to_have_text(re.compile(r"\d+"))
        before = int(count(page).inner_text())
        assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        expect(page.locator("#state")).to_have_text("Not connected, trying again …")
    increase = "from counter.models import Counter; from django.db.models import F; "
    increase += "Counter.objects.get_or_create(name='demo'); "
    increase += "Counter.objects.update(value=F('value') + 5)"
    manage(database, increase)
    with serving_example("drf_counter", kind, port, COUNTER_DATABASE=database), windows:
        expect(page.locator("#state")).to_have_text("Connected", timeout=BACK_MS)
        expect(count(page)).to_have_text(str(before + 5))
        delete = "from rest_framework.authtoken.models import Token; Token.objects.all().delete()"
        manage(database, delete)
        ended = "The token is not valid, or no longer"
        expect(page.locator("#state")).to_have_text(ended, timeout=BACK_MS)
