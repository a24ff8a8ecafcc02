"""`manage.py check` reports settings that would fail in production, and how to correct them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.other_uvicorn import NotAvailable, folder_with
from support.shop_process import MANAGE, environment, run

ROOT = Path(__file__).resolve().parents[2]
IDS = {f"{kind}{n:03}" for n, kind in enumerate("EWEWWWWIEWEE", start=1)}
IDS |= {"W016", "W017", "I018", "I019", "E021", "W022", "W023", "W024"}


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
        page = f"docs/checks.md#django_sockets{name.lower()}"
        assert f"{page} in the checkout or source distribution of django_sockets." in printed
    assert printed.count("HINT:") == len(re.findall(r"\(django_sockets\.\w+\)", printed))
    return printed, found


def test_a_project_in_order_hears_nothing() -> None:
    printed, found = check()
    assert found == set()
    assert "no issues" in printed


EVENT_URLS = """
from django.contrib.auth.decorators import login_required
from django.urls import include, path
from django_sockets.integration import events_view
urlpatterns = [path("live/", include([path("news/", login_required(events_view("news")))]))]
"""


def test_events_without_an_asgi_application_are_reported(tmp_path: Path) -> None:
    (tmp_path / "event_urls.py").write_text(EVENT_URLS)
    search = os.pathsep.join([str(ROOT / "tests/django"), str(ROOT), str(tmp_path)])
    urls = {"ROOT_URLCONF": "event_urls"}
    printed, found = check(settings={**urls, "ASGI_APPLICATION": None}, PYTHONPATH=search)
    assert found == {"W004", "W024"}
    assert "'live/news/'" in printed
    assert check(settings=urls, PYTHONPATH=search)[1] == set()
    # Without django.contrib.auth there are no users whose changes could be observed.
    assert run([*MANAGE, "check"], urls, PYTHONPATH=search).returncode == 0
    assert check(settings={"ASGI_APPLICATION": None}, PYTHONPATH=search)[1] == {"W004"}


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


NO_ASGI = """
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler, StaticFilesHandler
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django_sockets.middleware import OriginMiddleware
from django_sockets.sockets import BaseSocketServer
from django_sockets.utils import ProtocolTypeRouter, URLRouter

class Chat(BaseSocketServer):
    pass

class Around:
    def __init__(self, application):
        self.application = application

    def __call__(self, environ, start_response):
        return self.application(environ, start_response)

def function(environ, start_response):
    return []

wsgi = get_wsgi_application()
static = StaticFilesHandler(wsgi)
around = Around(wsgi)
inside = OriginMiddleware(wsgi)
static_asgi = ASGIStaticFilesHandler(wsgi)
routed = ProtocolTypeRouter({"http": wsgi, "websocket": Chat.as_asgi()})
swapped = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": wsgi})
no_call = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": Chat})
number = 7

async def own(scope, receive, send):
    pass

class Callable:
    async def __call__(self, scope, receive, send):
        pass

own_object = Callable()
called = Chat.as_asgi()
both = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": Chat.as_asgi})
"""


ALL_AT_ONCE = """
import json, sys
import django
django.setup()
from django.test import override_settings
from django_sockets.integration.checks import check_application

found = []
for case in json.load(sys.stdin):
    sys.modules.pop(case["ASGI_APPLICATION"].partition(".")[0], None)
    with override_settings(**case):
        found.append([[one.id[-4:], one.msg, one.hint] for one in check_application()])
print(json.dumps(found))
"""


def check_each(folder: Path, cases: list[dict[str, Any]]) -> list[list[tuple[str, str, str]]]:
    """What the check of the application finds with each of these settings, in one process."""
    path = os.pathsep.join([str(folder), str(ROOT / "tests/django")])
    ended = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE],
        env=environment(PYTHONPATH=path),
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: list[list[tuple[str, str, str]]] = json.loads(ended.stdout)
    return found


WSGI, GET_ASGI = "is a WSGI application", "Use get_asgi_application()"
EXPECTED = {
    "wsgi": (f"no_asgi.wsgi {WSGI}", GET_ASGI),
    "static": (WSGI, GET_ASGI),
    "around": (WSGI, GET_ASGI),
    "function": (WSGI, GET_ASGI),
    "inside": (WSGI, GET_ASGI),
    "static_asgi": (WSGI, GET_ASGI),
    "routed": (f"The entry 'http' of no_asgi.routed {WSGI}", GET_ASGI),
    "swapped": (f"The entry 'websocket' of no_asgi.swapped {WSGI}", GET_ASGI),
    "no_call": ("The entry 'websocket' of no_asgi.no_call is the class Chat", "Chat.as_asgi()."),
    "Chat": ("no_asgi.Chat is the class Chat", "Write Chat.as_asgi()."),
    "number": ("no_asgi.number is a int and no application", "in your asgi.py"),
    "own": None,
    "own_object": None,
    "called": None,
    "both": None,
}


def test_what_is_no_asgi_application_is_an_error(tmp_path: Path) -> None:
    """Found by `check`: a server would answer each request with a TypeError."""
    (tmp_path / "no_asgi.py").write_text(NO_ASGI)
    cases = [{"ASGI_APPLICATION": f"no_asgi.{name}"} for name in EXPECTED]
    for (name, expected), found in zip(EXPECTED.items(), check_each(tmp_path, cases), strict=True):
        assert [number for number, _, _ in found] == (["E011"] if expected else []), (name, found)
        if expected is not None:
            assert expected[0] in found[0][1], name
            assert expected[1] in found[0][2], name


def test_the_wsgi_application_of_a_new_project_is_an_error(tmp_path: Path) -> None:
    """The likeliest mistake of all, with the files as `startproject` writes them."""
    made = subprocess.run(
        [*MANAGE, "startproject", "mysite", str(tmp_path)], check=True, capture_output=True
    )
    assert made.returncode == 0
    with (tmp_path / "mysite/settings.py").open("a") as file:
        file.write(
            'INSTALLED_APPS.insert(0, "django_sockets")\n'
            'ASGI_APPLICATION = "mysite.wsgi.application"\n'
        )
    ended = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "(django_sockets.E011) mysite.wsgi.application is a WSGI" in ended.stderr


LOGIN_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
NEEDS_APPS = """
from django_sockets.middleware import (
    BaseTokenAuthMiddleware, DRFTokenAuthMiddleware, SessionAuthMiddleware, secure,
)
from django_sockets.sockets import BaseSocketServer
from django_sockets.utils import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.conf import settings

pages = get_asgi_application()
app = BaseSocketServer.as_asgi()
made = {
    "drf": lambda: DRFTokenAuthMiddleware(app),
    "secure": lambda: secure(app, token=DRFTokenAuthMiddleware),
    "token": lambda: BaseTokenAuthMiddleware(app, get_user=lambda token: None),
    "session": lambda: SessionAuthMiddleware(app),
}[settings.MADE]()
application = ProtocolTypeRouter({"http": pages, "websocket": made})
"""
SESSIONS = "django.contrib.sessions"
AUTHTOKEN = "rest_framework.authtoken"


NEEDS = [
    ("drf", LOGIN_APPS, [AUTHTOKEN]),
    ("drf", [*LOGIN_APPS, "rest_framework"], [AUTHTOKEN]),
    ("secure", [*LOGIN_APPS, SESSIONS], [AUTHTOKEN]),
    ("secure", [*LOGIN_APPS, AUTHTOKEN], [SESSIONS]),
    ("drf", [], [*LOGIN_APPS, AUTHTOKEN]),
    ("token", [], LOGIN_APPS),
    ("session", LOGIN_APPS, [SESSIONS]),
    ("session", [SESSIONS], LOGIN_APPS),
    ("drf", [*LOGIN_APPS, AUTHTOKEN], []),
    ("token", LOGIN_APPS, []),
    ("session", [*LOGIN_APPS, SESSIONS], []),
]


def test_an_app_that_a_middleware_needs_is_an_error_before_any_handshake(tmp_path: Path) -> None:
    (tmp_path / "needs.py").write_text(NEEDS_APPS)
    cases = [
        {
            "MADE": made,
            "ASGI_APPLICATION": "needs.application",
            "INSTALLED_APPS": ["django_sockets", "shop", *apps],
        }
        for made, apps, _ in NEEDS
    ]
    for case, found in zip(NEEDS, check_each(tmp_path, cases), strict=True):
        missing = case[2]
        assert [number for number, _, _ in found] == (["E012"] if missing else []), (case, found)
        for name in missing:
            assert f"'{name}'" in found[0][1]
            assert f"'{name}'" in found[0][2]
            assert "manage.py migrate" in found[0][2]


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
    folder = ROOT / "django_sockets/integration"
    names = ("checks.py", "layer_checks.py", "server_sent_events/check.py")
    code = "".join((folder / name).read_text() for name in names)
    assert set(re.findall(r'"([EWI]0\d\d)"', code)) == IDS


EXCEPTIONS = "starlette.middleware.exceptions.ExceptionMiddleware"
WRAPPING = """
from django.core.asgi import get_asgi_application
from django.urls import path
from django_sockets.utils import ProtocolTypeRouter, URLRouter
from shop.sockets import Counter
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware

class Tracing:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def traced(event):
            await send(event)

        await self.app(scope, receive, traced)

class Failing(Tracing):
    async def __call__(self, scope, receive, send):
        raise RuntimeError("it wants another scope")

pages = get_asgi_application()
inner = ExceptionMiddleware(Counter.as_asgi)
sockets = URLRouter([path("ws/<room>/", inner), path("plain/", Counter.as_asgi)])
application = Failing(CORSMiddleware(ProtocolTypeRouter({
    "http": Tracing(pages), "websocket": %s,
}), allow_origins=["*"]))
"""


@pytest.mark.parametrize(
    ("websocket", "wrappers"),
    [
        (
            "Tracing(sockets)",
            {"wrapping.Tracing", EXCEPTIONS},
        ),
        ("sockets", {EXCEPTIONS}),
        ("URLRouter([path('', Counter.as_asgi)])", set()),
    ],
)
def test_middleware_that_replaces_send_is_named(
    tmp_path: Path, websocket: str, wrappers: set[str]
) -> None:
    (tmp_path / "wrapping.py").write_text(WRAPPING % websocket)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "tests" / "django")])
    settings = {"ASGI_APPLICATION": "wrapping.application"}
    printed, found = check("--deploy", settings=settings, PYTHONPATH=path)
    said = set(re.findall(r"\(django_sockets.I019\) (\S+) replaces", printed))
    assert said == wrappers
    assert ("I019" in found) is bool(wrappers)
    command = [*MANAGE, "sockets", "check", "--server"]
    ended = run(command, settings, PYTHONPATH=path)
    assert ended.returncode == 0, ended.stderr
    assert set(re.findall(r"^middleware +(\S+) replaces", ended.stdout, re.MULTILINE)) == wrappers


def test_a_uvicorn_without_back_pressure_is_a_warning(missing: Any) -> None:
    try:
        folder = folder_with("uvicorn==0.52.0", "websockets==15.0")
    except NotAvailable as exc:
        missing(str(exc))
    path = os.pathsep.join([str(folder), str(ROOT / "tests" / "django")])
    printed, found = check("--deploy", PYTHONPATH=path)
    assert {"W017", "I018"} <= found
    assert "uvicorn 0.52.0 is installed" in printed
    assert "has no bound" in printed
