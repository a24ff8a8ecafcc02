"""The page of docs/tutorial.md in a real browser."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.ports import free_port
from support.client_pages import BACK_MS
from support.shop_process import serving
from support.tutorial import ROOT, build, manage


@pytest.fixture(scope="module")
def kind() -> str:
    return "uvicorn"


def test_the_board_is_live_and_comes_back_after_a_restart(
    windows: Any, tmp_path: Path, picture: Any
) -> None:
    from playwright.sync_api import expect

    build(tmp_path)
    user = "from django.contrib.auth.models import User; User.objects.create_superuser"
    manage(tmp_path, "shell", "-c", f"{user}('ann', password='secret')")
    port = free_port()
    command = [
        sys.executable, str(tmp_path / "manage.py"), "runserver", "--noreload", str(port),
    ]  # fmt: skip
    more = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "DJANGO_SETTINGS_MODULE": "mysite.settings",
        "DJANGO_RUNSERVER_HIDE_WARNING": "true",
    }
    with serving(command, port, tmp_path / "log", **more) as server:
        one = windows.open(viewport={"width": 700, "height": 500}).new_page()
        one.goto(f"http://127.0.0.1:{port}/")
        one.get_by_label("Username").fill("ann")
        one.get_by_label("Password").fill("secret")
        one.get_by_role("button", name="Log in").click()
        two = one.context.new_page()
        two.goto(f"http://127.0.0.1:{port}/")
        for page in (one, two):
            expect(page.locator("#connection")).to_have_text("Live")
        one.get_by_label("New task").fill("Water the plants")
        one.get_by_role("button", name="Add").click()
        two.get_by_label("Water the plants").check()
        expect(one.get_by_label("Water the plants")).to_be_checked()
        picture(one, "tutorial")
        # The pages of the admin have no icon.
        windows.expected = "WebSocket connection to .* failed|ERR_CONNECTION_REFUSED|Not Found"
        server.end(signal.SIGINT)
        expect(one.locator("#connection")).to_have_text("No connection, trying again …")
        task = "from board.models import Task; Task.objects.create(text='from the shell')"
        manage(tmp_path, "shell", "-c", task)
    with serving(command, port, tmp_path / "log", **more), windows:
        expect(one.get_by_label("from the shell")).to_be_visible(timeout=BACK_MS)
        expect(one.locator("#connection")).to_have_text("Live")
        one.get_by_label("from the shell").check()
        expect(two.get_by_label("from the shell")).to_be_checked(timeout=BACK_MS)
        one.goto(f"http://127.0.0.1:{port}/admin/")
        one.get_by_role("button", name="Log out").click()
        expect(two.locator("#connection")).to_have_text("Logged out. Load the page again.")
