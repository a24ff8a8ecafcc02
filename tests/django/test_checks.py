"""System checks: what would fail in production is said by `manage.py check`, with a way out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from shop_process import MANAGE, run

ROOT = Path(__file__).resolve().parents[2]
IDS = {"E001", "W002", "E003", "W004", "W005", "W006", "W007", "I008", "E009", "W010", "W016"}


def check(
    *arguments: str, settings: dict[str, Any] | None = None, **more: str
) -> tuple[str, set[str]]:
    """What `manage.py check` prints, and the ids of ours in it."""
    command = [*MANAGE, "check", "--tag", "django_sockets", *arguments]
    ended = run(command, settings, **more)
    printed = ended.stdout + ended.stderr
    assert "Traceback" not in printed
    found = set(re.findall(r"\(django_sockets\.(\w+)\)", printed))
    assert (ended.returncode == 1) is any(name.startswith("E") for name in found), printed
    for name in found:
        assert f"docs/checks.md#django_sockets{name.lower()}" in printed
    assert printed.count("HINT:") == len(re.findall(r"\(django_sockets\.\w+\)", printed))
    return printed, found


def test_a_project_in_order_hears_nothing() -> None:
    printed, found = check()
    assert found == set()
    assert "no issues" in printed


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ("reddis://localhost", "did you mean 'redis'"),
        ({"hosts": [{"address": "redis://localhost", "prefx": "a"}]}, "prefx"),
        ({"urll": "redis://localhost"}, "unknown setting 'urll'"),
        (7, "not int"),
    ],
)
def test_a_mistyped_configuration_is_an_error(configuration: Any, said: str) -> None:
    printed, found = check(settings={"DJANGO_SOCKETS_CONFIG": configuration})
    assert found == {"E001"}
    assert said in printed


def test_a_password_is_not_shown() -> None:
    url = "redis://:opensesame@localhost?prefx=a"
    printed, found = check(settings={"DJANGO_SOCKETS_CONFIG": url})
    assert found == {"E001"}
    assert "opensesame" not in printed


def test_memory_in_production_is_a_warning() -> None:
    printed, found = check(settings={"DEBUG": False})
    assert found == {"W002"}
    assert "the built-in default" in printed
    assert check(WEB_CONCURRENCY="4")[1] == {"W002"}
    assert check(WEB_CONCURRENCY="1")[1] == set()
    cached = {"DEBUG": False, "DJANGO_SOCKETS_CONFIG": "redis://localhost"}
    assert check(settings=cached, WEB_CONCURRENCY="4")[1] == set()


def test_the_test_runner_is_not_taken_for_production() -> None:
    ended = run([*MANAGE, "test", "shop"])
    assert "Found 0 test(s)" in ended.stdout + ended.stderr
    assert "W002" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("application", "expected", "said"),
    [
        ("shop.nowhere.application", "E003", "No module named 'shop.nowhere'"),
        ("shop.asgi.app", "E003", 'does not define a "app"'),
        (None, "W004", "ASGI_APPLICATION is not set"),
        ("shop.asgi.pages", "W005", "does not route websockets"),
    ],
)
def test_an_application_without_websockets_is_said(
    application: str | None, expected: str, said: str
) -> None:
    printed, found = check(settings={"ASGI_APPLICATION": application})
    assert found == {expected}
    assert said in printed


def test_a_class_that_is_open_to_every_page_is_said() -> None:
    settings = {"ASGI_APPLICATION": "shop.open_to_all.application"}
    printed, found = check(settings=settings)
    assert found == {"W006"}
    assert "shop.open_to_all.Open has '*'" in printed
    silenced = {**settings, "SILENCED_SYSTEM_CHECKS": ["django_sockets.W006"]}
    printed, found = check(settings=silenced)
    assert found == set()
    assert "1 silenced" in printed


@pytest.mark.parametrize(
    ("apps", "expected"),
    [
        (["django_sockets", "django.contrib.staticfiles"], set()),
        (["django.contrib.staticfiles", "django_sockets"], {"W007"}),
        (["daphne", "django_sockets", "django.contrib.staticfiles"], {"W007"}),
        (["django_sockets", "daphne", "django.contrib.staticfiles"], set()),
    ],
)
def test_an_order_of_apps_that_hides_our_runserver_is_said(
    apps: list[str], expected: set[str]
) -> None:
    assert check(settings={"INSTALLED_APPS": [*apps, "shop"]})[1] == expected


def test_a_site_behind_a_tls_proxy_is_told_before_it_refuses_everybody() -> None:
    settings: dict[str, Any] = {"SESSION_COOKIE_SECURE": True}
    assert check(settings=settings)[1] == set()
    assert check("--deploy", settings=settings)[1] == {"I008"}
    settings["SECURE_PROXY_SSL_HEADER"] = ["HTTP_X_FORWARDED_PROTO", "https"]
    assert check("--deploy", settings=settings)[1] == set()


NETWORK = ["--deploy", "--tag", "django_sockets_network"]


def test_the_network_is_tried_only_when_asked(valkey_server: CacheServer) -> None:
    dead = {"DJANGO_SOCKETS_CONFIG": f"redis://127.0.0.1:{free_port()}"}
    # Where no broker is, as in a build, `check --deploy` as such has to pass.
    assert run([*MANAGE, "check", "--deploy"], dead).returncode == 0
    printed, found = check(*NETWORK, settings=dead)
    assert found == {"E009"}
    assert "cannot connect" in printed
    alive = {"DJANGO_SOCKETS_CONFIG": valkey_server.url}
    assert check(*NETWORK, settings=alive)[1] <= {"W010"}


def test_the_library_works_without_its_app() -> None:
    apps = ["django.contrib.staticfiles", "shop"]
    ended = run([*MANAGE, "check"], {"INSTALLED_APPS": apps})
    assert ended.returncode == 0, ended.stderr


def test_every_check_has_its_section_in_the_docs() -> None:
    text = (ROOT / "docs/checks.md").read_text()
    assert set(re.findall(r"^## django_sockets\.(\w+)$", text, re.MULTILINE)) == IDS
    code = (ROOT / "django_sockets/integration/checks.py").read_text()
    assert set(re.findall(r'"([EWI]0\d\d)"', code)) == IDS
