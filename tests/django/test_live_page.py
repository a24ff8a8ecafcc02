"""The live page shows all processes to staff, and nothing to anybody else.

If one of these fails, a stranger reads the names of channels and users, or closes sockets; or an
operator looks at a page that shows nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.test import AsyncClient, Client, override_settings
from django.urls import clear_url_caches, include, path

from django_sockets.conf import load_config
from django_sockets.hub.stats import HubStats
from django_sockets.hub.survey.asking import Answer, Answers
from django_sockets.hub.survey.report import report_of_process
from django_sockets.log import shown
from django_sockets.observability.live.overview import Overview
from django_sockets.runtime import close_shared_hubs, local_hubs
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient, SocketClosed
from django_sockets.testing.ports import free_port
from support.event_streams import Stream, opened

PAGE = "/admin/sockets/"
DATA = ["stream/", "snapshot/", "broker/"]
ADMIN = ["django.contrib.admin", "django.contrib.messages", "django_sockets"]
AUTH = "django.contrib.auth"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    f"{AUTH}.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
CONTEXT = [
    "django.template.context_processors.request",
    f"{AUTH}.context_processors.auth",
    "django.contrib.messages.context_processors.messages",
]
_names = itertools.count()


class Chat(BaseSocketServer):
    async def connect(self) -> None:
        self.tags = {"user": self.scope["query_string"].decode()}
        await self.async_subscribe("room:1")
        await self.async_send("ready")


class _Urls:
    """A URLconf."""

    def __init__(self) -> None:
        from django.contrib import admin

        from django_sockets.integration.live_page import live_page_urls

        own = (live_page_urls(), "django_sockets")
        self.urlpatterns = [path("admin/sockets/", include(own)), path("admin/", admin.site.urls)]


class Site:
    """A project with the admin and the live page, and its users."""

    def __init__(self, members: Any) -> None:
        self.members = members
        self.url = f"memory://live{next(_names)}"
        self._settings = ExitStack()
        self.change(
            INSTALLED_APPS=[*self._apps(), *ADMIN],
            MIDDLEWARE=MIDDLEWARE,
            DJANGO_SOCKETS_CONFIG=self.url,
            STATIC_URL="/static/",
            TEMPLATES=[
                {
                    "BACKEND": "django.template.backends.django.DjangoTemplates",
                    "APP_DIRS": True,
                    "OPTIONS": {"context_processors": CONTEXT},
                }
            ],
        )
        self.change(ROOT_URLCONF=_Urls())

    def _apps(self) -> list[str]:
        from django.conf import settings

        return list(settings.INSTALLED_APPS)

    def change(self, **settings: Any) -> None:
        self._settings.enter_context(override_settings(**settings))
        clear_url_caches()

    def close(self) -> None:
        self._settings.close()
        clear_url_caches()

    def user(self, name: str, **fields: Any) -> tuple[Any, str]:
        """A new user, and the key of a session."""
        user = self.members.create(name, **fields)
        return user, self.members.login(user)

    def boss(self) -> str:
        """The session of a user who may do everything."""
        return self.user("boss", is_staff=True, is_superuser=True)[1]

    def key_of(self, who: str) -> str | None:
        """The session of a user who may not see the page."""
        if who == "anonymous":
            return None
        user, key = self.user(who, is_staff=who != "customer")
        if who == "inactive staff":
            type(user).objects.filter(pk=user.pk).update(is_active=False)
        if who == "former staff":
            type(user).objects.filter(pk=user.pk).update(is_staff=False)
        return key


@pytest.fixture
def site(members: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(members)
    monkeypatch.setattr("django_sockets.integration.live_page.feed.INTERVAL_SECONDS", 0.4)
    monkeypatch.setattr("django_sockets.integration.live_page.feed.WINDOW_SECONDS", 0.2)
    yield made
    made.close()


@pytest.fixture
async def asgi(site: Site) -> AsyncIterator[Site]:
    """The site for an asynchronous test."""
    yield site
    await close_shared_hubs()


def browser(key: str | None, **options: Any) -> Client:
    """A client of a WSGI server."""
    client = Client(**options)
    if key:
        client.cookies["sessionid"] = key
    return client


def cookie(key: str | None) -> dict[str, str]:
    return {"cookie": f"sessionid={key}"} if key else {}


async def picture_in(stream: Stream) -> Any:
    """The next picture of a stream."""
    while "data" not in (frame := await stream.frame()):
        pass
    return frame["data"]


def is_serving(picture: Any) -> bool:
    """Whether this process has answered in time."""
    return [row["status"] for row in picture["processes"]] == ["serving"]


# Who may see it

STRANGERS = ["anonymous", "customer", "inactive staff", "former staff"]


@pytest.mark.parametrize("who", STRANGERS)
def test_others_than_staff_are_sent_to_the_login_and_get_no_data(site: Site, who: str) -> None:
    client = browser(site.key_of(who))
    for page in ("", "close/?user=7"):
        answer = client.get(PAGE + page)
        assert answer.status_code == 302
        assert answer["Location"].startswith("/admin/login/?next=/admin/sockets/")
    for name in DATA:
        answer = client.get(PAGE + name)
        assert answer.status_code == 403, name
        assert answer["X-Frame-Options"] == "DENY"
        assert b"memory" not in answer.content
    assert client.post(f"{PAGE}close/", {"user": "7"}).status_code == 403
    assert not [hub for hub in local_hubs() if str(hub.config.url) == site.url], "nobody was asked"


@pytest.mark.parametrize("who", STRANGERS)
async def test_others_than_staff_get_no_stream(asgi: Site, who: str) -> None:
    key = await asgi.members.do(asgi.key_of, who)
    for name in DATA:
        async with opened(ASGIHandler(), PAGE + name, headers=cookie(key)) as stream:
            await asyncio.wait_for(stream.ended.wait(), 10)
            assert stream.status == 403, name
    assert not [hub for hub in local_hubs() if str(hub.config.url) == asgi.url]


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://testserver.evil.example"},
    {"Origin": "http://testserver:81"},
]
OWN = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "https://testserver"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_site_gets_nothing_with_the_cookies_of_staff(
    site: Site, headers: dict[str, str]
) -> None:
    client = browser(site.boss())
    for name in DATA:
        answer = client.get(PAGE + name, headers=headers)
        assert answer.status_code == 403, name
        assert b"other sites" in answer.content


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_the_own_page_gets_its_data(site: Site, headers: dict[str, str]) -> None:
    assert browser(site.boss()).get(f"{PAGE}broker/", headers=headers).status_code == 200


def test_a_form_of_another_site_closes_nothing(site: Site) -> None:
    client = browser(site.boss(), enforce_csrf_checks=True)
    assert client.post(f"{PAGE}close/", {"user": "7"}).status_code == 403


@pytest.mark.parametrize("name", ["", "snapshot/", "broker/", "close/?user=7"])
def test_answers_are_never_cached_or_framed(site: Site, name: str) -> None:
    answer = browser(site.boss()).get(PAGE + name)
    assert answer.status_code == 200
    assert answer["X-Frame-Options"] == "DENY"
    assert "no-store" in answer["Cache-Control"]


def test_it_works_in_a_project_that_requires_logins_everywhere(site: Site) -> None:
    site.change(MIDDLEWARE=[*MIDDLEWARE, f"{AUTH}.middleware.LoginRequiredMiddleware"])
    assert browser(None).get(PAGE)["Location"].startswith("/admin/login/")
    assert browser(None).get(f"{PAGE}snapshot/").status_code == 403
    assert browser(site.boss()).get(f"{PAGE}snapshot/").status_code == 200


async def test_it_works_with_a_transaction_for_each_request(asgi: Site) -> None:
    from django.db import connections

    key = await asgi.members.do(asgi.boss)
    connections.databases["default"]["ATOMIC_REQUESTS"] = True
    try:
        async with opened(ASGIHandler(), f"{PAGE}stream/", headers=cookie(key)) as stream:
            assert stream.status == 200
            assert (await picture_in(stream))["problem"] is None
    finally:
        connections.databases["default"]["ATOMIC_REQUESTS"] = False


@pytest.mark.parametrize("app", ["django.contrib.admin", "django_sockets"])
def test_a_missing_app_is_named(site: Site, app: str) -> None:
    from django.conf import settings

    from django_sockets.integration.live_page import live_page_urls

    site.change(INSTALLED_APPS=[name for name in settings.INSTALLED_APPS if name != app])
    with pytest.raises(ImproperlyConfigured, match=re.escape(repr(app))):
        live_page_urls()


def test_the_urls_can_be_included_by_name(site: Site) -> None:
    from django_sockets import urls

    assert urls.app_name == "django_sockets"
    assert next(pattern.name for pattern in urls.urlpatterns) == "live-page"
    text = browser(site.boss()).get(PAGE).content.decode()
    assert f'data-snapshot="{PAGE}snapshot/"' in text


def test_system_checks_do_not_complain_about_the_stream_under_wsgi(site: Site) -> None:
    from django.core.checks import run_checks

    assert [found for found in run_checks() if "W024" in str(found.id)] == []


# The page


def test_the_page_has_no_inline_script_or_style(site: Site) -> None:
    """A Content-Security-Policy without 'unsafe-inline' must not break the page."""
    client = browser(site.boss())
    for name in ("", "close/?user=7"):
        text = client.get(PAGE + name).content.decode()
        main = text[text.index("<main") :]
        assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", main) == []
        assert "<script>" not in text
        assert re.findall(r"live_page\.css", text)


def test_the_page_says_so_without_javascript(site: Site) -> None:
    text = browser(site.boss()).get(PAGE).content.decode()
    assert "needs JavaScript" in re.findall(r"(?s)<noscript>.*?</noscript>", text)[0]


def test_wsgi_has_no_stream_and_the_page_knows_it(site: Site) -> None:
    client = browser(site.boss())
    assert 'data-stream=""' in client.get(PAGE).content.decode()
    assert client.get(f"{PAGE}stream/").status_code == 501


async def test_asgi_has_a_stream(asgi: Site) -> None:
    client = AsyncClient()
    client.cookies["sessionid"] = await asgi.members.do(asgi.boss)
    answer = await client.get(PAGE)
    assert f'data-stream="{PAGE}stream/"' in answer.content.decode()


def test_secrets_of_the_broker_are_in_no_answer(site: Site) -> None:
    site.change(DJANGO_SOCKETS_CONFIG=f"redis://ann:s3cret@127.0.0.1:{free_port()}")
    client = browser(site.boss())
    answers = [client.get(PAGE + name).content for name in ("", "snapshot/", "broker/")]
    assert b"s3cret" not in b"".join(answers)
    assert all(b"127.0.0.1" in answer for answer in answers)
    assert "cannot connect" in json.loads(answers[1])["problem"]
    assert json.loads(answers[2])["ok"] is False


# The figures


async def test_the_stream_shows_the_sockets_and_a_second_page_has_them_at_once(asgi: Site) -> None:
    key = await asgi.members.do(asgi.boss)
    async with SocketClient(Chat.as_asgi, "/?7") as one, SocketClient(Chat.as_asgi, "/?7") as two:
        for client in (one, two):
            assert await client.receive_json() == "ready"
        async with opened(ASGIHandler(), f"{PAGE}stream/", headers=cookie(key)) as stream:
            picture = await picture_in(stream)
            while not is_serving(picture):  # It begins to listen when somebody looks.
                picture = await picture_in(stream)
            assert picture["sockets"] == {"Chat": 2}
            assert picture["channels"] == [["room:1", 2]]
            assert picture["users"] == [["7", 2]]
            assert picture["broker"] == asgi.url
            (row,) = picture["processes"]
            assert row["numbers"]["sockets"] == 2
            assert picture["numbers"]["event_streams"] == 0, "the page does not count itself"
            async with opened(ASGIHandler(), f"{PAGE}stream/", headers=cookie(key)) as other:
                frames = await other.frames(2)
                assert frames[1]["data"]["feed"] == picture["feed"]


def test_wsgi_polls_are_answered_by_one_feed(site: Site) -> None:
    """Otherwise each poll would forget the processes that have gone."""
    client = browser(site.boss())
    first = client.get(f"{PAGE}snapshot/").json()
    second = first
    while second["time"] == first["time"] or not is_serving(second):
        second = client.get(f"{PAGE}snapshot/").json()
    assert second["feed"] == first["feed"]


def surveys() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "django_sockets live page"]


async def test_the_survey_ends_with_the_last_page(
    asgi: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await asgi.members.do(asgi.boss)

    async with opened(ASGIHandler(), f"{PAGE}stream/", headers=cookie(key)) as stream:
        await picture_in(stream)
        (survey,) = surveys()
        monkeypatch.setattr("django_sockets.integration.live_page.feed.LINGER_SECONDS", 0.0)
        await picture_in(stream)
        assert not survey.done()
    await asyncio.wait_for(asyncio.wait([survey]), 20)
    assert surveys() == []
    monkeypatch.setattr("django_sockets.integration.live_page.feed.LINGER_SECONDS", 15.0)
    async with opened(ASGIHandler(), f"{PAGE}stream/", headers=cookie(key)) as stream:
        await picture_in(stream)


async def test_a_shutdown_ends_the_stream_and_the_survey(asgi: Site) -> None:
    from django_sockets.runtime.shutdown import drain

    key = await asgi.members.do(asgi.boss)
    async with opened(ASGIHandler(), f"{PAGE}stream/", headers=cookie(key)) as stream:
        await picture_in(stream)
        (survey,) = surveys()
        await drain(0.2)
        assert [frame["bye"]["code"] for frame in await stream.end() if "bye" in frame] == [1012]
        await asyncio.wait_for(asyncio.wait([survey]), 20)


async def test_the_broker_inside_the_process_is_not_logged_as_the_one_of_the_project(
    asgi: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_sockets")
    key = await asgi.members.do(asgi.boss)
    async with opened(ASGIHandler(), f"{PAGE}stream/", headers=cookie(key)) as stream:
        await picture_in(stream)
    assert [text for text in caplog.messages if "live-page" in text] == []


def report(number: int, own: Any) -> Any:
    names = [(f"{kind}:{number}:{'é' * 110}"[:120], number) for kind in "abcdefghijklmnopqrst"]
    slow = {"socket": "é" * 120, "user": "é" * 120, "messages": 1, "bytes": 10**9}
    counters = dict.fromkeys(HubStats.__annotations__, 10**12)
    more = {"numbers": counters, "channels": names, "users": names, "slow": [slow] * 20}
    return {**own, "process": f"{number:032x}", "host": "h" * 120, "pid": number, **more}


def test_a_picture_of_a_thousand_processes_is_small_and_says_what_is_left_out() -> None:
    from django_sockets.integration.live_page.pictures import MOST_ROWS, picture_of

    overview = Overview("memory://size")
    own = report_of_process(load_config("memory://size").url)
    *answers, gone = (Answer(report(number, own), 0.1, True) for number in range(1000))
    overview.add(Answers([*answers, gone], False), 0.0)
    overview.add(Answers(answers, False), 20.0)
    text = picture_of(overview.snapshot(20.0, 1.0), "feed")
    picture = json.loads(text)
    assert len(picture["processes"]) == MOST_ROWS
    assert picture["hidden"] == 1000 - MOST_ROWS
    assert picture["statuses"] == {"gone": 1, "serving": 999}
    assert picture["processes"][0]["status"] == "gone", "problems are never left out"
    assert picture["numbers"]["published"] == 999 * 10**12
    assert len(text) < 256 * 1024, len(text)


# The end of the right to see it


@pytest.mark.parametrize("change", ["is_staff", "is_active", "logout", "delete"])
async def test_a_stream_ends_when_the_user_is_no_longer_staff(
    asgi: Site, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_sockets.integration.live_page.feed.CHECK_SECONDS", 0.1)
    user, key = await asgi.members.do(asgi.user, "staff", is_staff=True)
    _, other_key = await asgi.members.do(asgi.user, "other", is_staff=True)
    changes: dict[str, Callable[[], Any]] = {
        "is_staff": lambda: type(user).objects.filter(pk=user.pk).update(is_staff=False),
        "is_active": lambda: type(user).objects.filter(pk=user.pk).update(is_active=False),
        "logout": lambda: asgi.members.logout(key),
        "delete": lambda: type(user).objects.filter(pk=user.pk).delete(),
    }
    page = f"{PAGE}stream/"
    async with (
        SocketClient(Chat.as_asgi, f"/?{user.pk}") as socket,
        opened(ASGIHandler(), page, headers=cookie(other_key)) as other,
        opened(ASGIHandler(), page, headers=cookie(key)) as stream,
    ):
        assert await socket.receive_json() == "ready"
        await picture_in(stream)
        await asgi.members.do(changes[change])
        await stream.end()
        async with opened(ASGIHandler(), page, headers=cookie(key)) as again:
            assert again.status == 403
        for _ in range(2):
            await picture_in(other)  # The page of another user stays.
        if change == "is_staff":  # A customer may have sockets.
            assert await socket.receive_nothing(0.01)


async def test_a_stream_of_former_staff_also_ends_while_the_broker_is_away(
    asgi: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asgi.change(DJANGO_SOCKETS_CONFIG=f"redis://127.0.0.1:{free_port()}")
    monkeypatch.setattr("django_sockets.integration.live_page.feed.CHECK_SECONDS", 0.1)
    user, key = await asgi.members.do(asgi.user, "staff", is_staff=True)
    async with opened(ASGIHandler(), f"{PAGE}stream/", headers=cookie(key)) as stream:
        assert await stream.frame() == {"ready": {}}
        change = type(user).objects.filter(pk=user.pk)
        await asgi.members.do(lambda: change.update(is_staff=False))
        await stream.end()


# Closing sockets


async def test_the_sockets_of_a_user_are_closed_after_a_confirmation(
    asgi: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_sockets")
    user, _ = await asgi.members.do(asgi.user, "<b>ann</b>")
    client = AsyncClient()
    client.cookies["sessionid"] = await asgi.members.do(asgi.boss)
    async with (
        SocketClient(Chat.as_asgi, f"/?{user.pk}") as socket,
        SocketClient(Chat.as_asgi, "/?other") as other,
    ):
        for one in (socket, other):
            assert await one.receive_json() == "ready"
        asked = await client.get(f"{PAGE}close/", {"user": str(user.pk)})
        text = asked.content.decode()
        assert "&lt;b&gt;ann&lt;/b&gt;" in text
        assert "csrfmiddlewaretoken" in text
        assert await socket.receive_nothing(0.01)  # GET changes nothing.
        done = await client.post(f"{PAGE}close/", {"user": str(user.pk)})
        assert (done.status_code, done["Location"]) == (302, PAGE)
        with pytest.raises(SocketClosed) as closed:
            await socket.receive()
        assert closed.value.code == 4401
        assert await other.receive_nothing(0.01)
    page = await client.get(PAGE)
    assert f"All processes have been told to close the sockets of user {user.pk}." in (
        page.content.decode()
    )
    (line,) = (text for text in caplog.messages if "live page" in text)
    assert repr(str(user.pk)) in line
    assert "'boss'" in line


def test_a_get_request_closes_nothing_and_staff_without_the_permission_cannot(site: Site) -> None:
    from django.contrib.auth.models import Permission

    desk, key = site.user("desk", is_staff=True)
    client = browser(key)
    assert client.get(PAGE).status_code == 200
    assert b'id="live-user"' not in client.get(PAGE).content
    for method in (client.get, client.post):
        answer = method(f"{PAGE}close/", {"user": "7"})
        assert answer.status_code == 403
        assert b"permission to change users" in answer.content
    desk.user_permissions.add(Permission.objects.get(codename="change_member"))
    assert b'id="live-user"' in client.get(PAGE).content
    assert client.post(f"{PAGE}close/", {"user": "7"}).status_code == 302


@pytest.mark.parametrize("user", ["", " ", "x" * 256])
def test_an_id_that_cannot_be_one_gets_a_message(site: Site, user: str) -> None:
    client = browser(site.boss())
    answer = client.post(f"{PAGE}close/", {"user": user}, follow=True)
    assert b"Enter the id of the user" in answer.content


@pytest.mark.parametrize("user", ["<script>", "a\nINFO forged", "9" * 200, "\x00", "é"])
def test_any_other_text_is_escaped_in_pages_and_log_lines(
    site: Site, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_sockets")
    client = browser(site.boss())
    asked = client.get(f"{PAGE}close/", {"user": user})
    assert asked.status_code == 200
    assert b"There is no user with this id" in asked.content
    answer = client.post(f"{PAGE}close/", {"user": user}, follow=True)
    assert answer.status_code == 200
    assert b"<script>" not in asked.content + answer.content
    (line,) = (text for text in caplog.messages if "live page" in text)
    assert f"user {shown(user)} are closed" in line
    assert line.isprintable()


def test_a_broker_that_does_not_answer_is_an_error_message(site: Site) -> None:
    site.change(DJANGO_SOCKETS_CONFIG=f"redis://:s3cret@127.0.0.1:{free_port()}")
    client = browser(site.boss())
    answer = client.post(f"{PAGE}close/", {"user": "7"}, follow=True)
    assert b"The others were not reached" in answer.content
    assert b"s3cret" not in answer.content


def test_the_broker_is_checked_on_request(site: Site) -> None:
    found = browser(site.boss()).get(f"{PAGE}broker/").json()
    assert found["ok"] is True
    assert found["broker"] == site.url
    assert found["round_trip_ms"] > 0


@pytest.mark.parametrize("name", DATA)
def test_data_are_only_for_reading(site: Site, name: str) -> None:
    assert browser(site.boss()).post(PAGE + name).status_code == 405
