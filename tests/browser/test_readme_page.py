"""The server and the page at the top of the README, in a real browser."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.ports import free_port
from support.shop_process import serving

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SETTINGS = """
SECRET_KEY = "for this test"
DEBUG = True
ROOT_URLCONF = "site_of_readme"
STATIC_URL = "static/"
INSTALLED_APPS = ["django_sockets", "django.contrib.staticfiles"]
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": ["FOLDER"]}
]
"""
SITE = """
import os
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.shortcuts import render
from django.urls import path
from django_sockets.utils import ProtocolTypeRouter, URLRouter

pages = ASGIStaticFilesHandler(get_asgi_application())

from desk import Desk

urlpatterns = [path("", lambda request: render(request, "page.html"))]
websockets = URLRouter([path("ws/", Desk.as_asgi)])
application = ProtocolTypeRouter({"http": pages, "websocket": websockets})
"""


@pytest.fixture(scope="module")
def kind() -> str:
    return "uvicorn"


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_two_tabs_say_hello(windows: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    (tmp_path / "settings_of_readme.py").write_text(SETTINGS.replace("FOLDER", str(tmp_path)))
    (tmp_path / "site_of_readme.py").write_text(textwrap.dedent(SITE))
    (tmp_path / "desk.py").write_text(block("python"))
    icon = '<!doctype html><link rel="icon" href="data:,">'
    (tmp_path / "page.html").write_text(icon + block("html"))
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", "site_of_readme:application", "--port", str(port),
    ]  # fmt: skip
    more = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "DJANGO_SETTINGS_MODULE": "settings_of_readme",
    }
    with serving(command, port, tmp_path / "log", **more), windows:
        one, two = windows.open().new_page(), windows.open().new_page()
        one.goto(f"http://127.0.0.1:{port}/")
        expect(one.locator("body")).to_have_text(re.compile(r"hello\s*$"))
        two.goto(f"http://127.0.0.1:{port}/")
        for page, text in ((one, r"hellohello\s*$"), (two, r"hello\s*$")):
            expect(page.locator("body")).to_have_text(re.compile(text))
