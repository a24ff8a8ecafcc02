"""examples/drf_counter works as its README describes: count with the API, watch with a token."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from django_sockets.testing.ports import free_port
from support.example_process import WAIT_SECONDS, commands, run, started

SETUP, RUNSERVER = commands("drf_counter")


class Site(NamedTuple):
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/count/"

    def count(self) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/count/",
            method="POST",
            headers={"Authorization": f"Token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
            return int(json.load(response)["value"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("rest_framework")
    database = str(tmp_path_factory.mktemp("counter") / "counter.sqlite3")
    token = run("drf_counter", SETUP, COUNTER_DATABASE=database).strip()
    port = free_port()
    with started(
        "drf_counter", RUNSERVER, "--noreload", str(port), COUNTER_DATABASE=database
    ) as running:
        running.read_until("Quit the server")
        yield Site(port, token)
        assert running.end() == 0
    assert "Traceback" not in running.printed, running.printed


def test_who_has_the_token_sees_each_count_once_it_is_committed(site: Site) -> None:
    origin = f"http://127.0.0.1:{site.port}"
    with connect(
        site.url,
        subprotocols=["django-sockets.token", site.token],  # type: ignore[list-item]
        origin=origin,  # type: ignore[arg-type]
        proxy=None,
    ) as page:
        assert page.subprotocol == "django-sockets.token"
        first = json.loads(page.recv(timeout=WAIT_SECONDS))["value"]
        assert site.count() == first + 1
        assert json.loads(page.recv(timeout=WAIT_SECONDS)) == {"value": first + 1, "by": "robot"}


def test_a_page_that_opens_while_it_counts_gets_the_value_and_then_the_changes(site: Site) -> None:
    protocols: Any = ["django-sockets.token", site.token]
    origin: Any = f"http://127.0.0.1:{site.port}"
    opened = threading.Event()

    def count_until_opened() -> int:
        while not opened.is_set():
            site.count()
        return site.count()

    with ThreadPoolExecutor(1) as counting, contextlib.ExitStack() as stack:
        last = counting.submit(count_until_opened)
        try:
            pages = [
                stack.enter_context(
                    connect(site.url, subprotocols=protocols, origin=origin, proxy=None)
                )
                for _ in range(30)
            ]
            firsts = [json.loads(page.recv(timeout=WAIT_SECONDS)) for page in pages]
        finally:
            opened.set()
        assert [first for first in firsts if "by" in first] == []  # A change would show it.
        end = last.result(WAIT_SECONDS)
        for page, first in zip(pages, firsts, strict=True):
            shown = first["value"]
            while shown < end:
                change = json.loads(page.recv(timeout=WAIT_SECONDS))["value"]
                assert change <= shown + 1  # None is missing.
                shown = max(shown, change)


def test_the_script_of_the_readme_prints_them(site: Site) -> None:
    with started("drf_counter", f"python watch.py {site.token} {site.url}") as watching:
        first = int(watching.read_until(r"^\d+$")[0])
        assert site.count() == first + 1
        assert int(watching.read_until(r"^\d+$")[0]) == first + 1
        assert watching.end() == 0


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Token wrong"}])
def test_without_the_token_nobody_is_let_in(site: Site, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(site.url, additional_headers=headers, proxy=None)
    assert refused.value.response.status_code == 401


def test_its_migration_is_that_of_its_models(site: Site) -> None:
    assert "No changes" in run("drf_counter", "python manage.py makemigrations --check --dry-run")
