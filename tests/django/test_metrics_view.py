"""The metrics are shown to Prometheus with its token and to staff, and to nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import REGISTRY

from django_sockets.broadcaster import Broadcaster
from django_sockets.observability import collect_metrics, metrics_view
from support.metrics import scraped

TOKEN = "a-long-random-token"


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    collector = collect_metrics(REGISTRY)
    yield
    collector.close()


class User:
    def __init__(self, *, is_staff: bool, is_active: bool = True) -> None:
        self.is_staff, self.is_active = is_staff, is_active


def answer_to(user: Any = None, method: str = "GET", **headers: str) -> Any:
    from django.test import RequestFactory

    request = RequestFactory().generic(method, "/metrics", headers=headers)
    if user is not None:
        request.user = user  # type: ignore[assignment]
    return metrics_view(request)


@pytest.fixture(params=["setting", "environment"])
def token(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from django.test import override_settings

    name = "DJANGO_SOCKETS_METRICS_TOKEN"
    if request.param == "environment":
        monkeypatch.setenv(name, TOKEN)
        yield TOKEN
    else:
        with override_settings(**{name: TOKEN}):
            yield TOKEN


def test_prometheus_reads_the_metrics_with_its_token(token: str) -> None:
    Broadcaster("memory://view").broadcast("room", 1)
    answer = answer_to(Authorization=f"Bearer {token}")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=")
    assert "no-store" in answer["Cache-Control"]
    metrics = scraped(answer.content.decode())
    assert metrics("messages_published_total", broker="memory") >= 1
    # The other collectors of the registry are there, too.
    assert "process_cpu_seconds_total" in metrics.names


def test_a_reader_may_ask_for_openmetrics(token: str) -> None:
    accept = "application/openmetrics-text; version=1.0.0"
    answer = answer_to(Authorization=f"Bearer {token}", Accept=accept)
    assert answer["Content-Type"].startswith("application/openmetrics-text")
    assert answer.content.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN,
     "Bearer \u00e4", "Bearer None"],
)  # fmt: skip
def test_without_the_token_nothing_is_shown(token: str, given: str) -> None:
    answer = answer_to(Authorization=given)
    assert answer.status_code == 403
    assert b"django_sockets_" not in answer.content


@pytest.mark.parametrize("given", ["Bearer ", "Bearer None", "Bearer a-long-random-token"])
def test_without_a_configured_token_no_token_is_right(given: str) -> None:
    assert answer_to(Authorization=given).status_code == 403


@pytest.mark.parametrize(
    ("user", "status"),
    [
        (None, 403),
        (User(is_staff=False), 403),
        (User(is_staff=True, is_active=False), 403),
        (User(is_staff=True), 200),
    ],
)
def test_staff_may_look_and_others_may_not(user: Any, status: int) -> None:
    assert answer_to(user).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_view_is_only_for_reading(token: str, method: str) -> None:
    assert answer_to(method=method, Authorization=f"Bearer {token}").status_code == 405


async def test_the_view_works_under_asgi(token: str) -> None:
    from asgiref.sync import sync_to_async

    answer = await sync_to_async(answer_to)(Authorization=f"Bearer {token}")
    assert answer.status_code == 200
    await asyncio.sleep(0)
