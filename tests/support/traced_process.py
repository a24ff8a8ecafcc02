"""One of two processes that share a trace: `view` publishes from Django, `socket` answers.

Run it with the role and the broker's URL. It prints "ready", and its spans as JSON at its end.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from opentelemetry import trace

from django_sockets import open_hub
from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient
from support.spans import Spans, exported, spans_of_process

WAIT_SECONDS = 50
ORDERS, REPLIES = "orders", "replies"


def print_spans(spans: Spans) -> None:
    print(json.dumps(exported(spans.all)), flush=True)


async def socket(url: str, spans: Spans) -> None:
    """A socket whose handler replies to each order on another channel, and tells its client."""

    class Kitchen(BaseSocketServer):
        config = url

        async def connect(self) -> None:
            await self.async_subscribe(ORDERS)
            await self.async_send("subscribed")

        async def async_handle_received_broadcast(self, channel: str, data: Any) -> None:
            await self.async_broadcast(REPLIES, {"cooked": data})
            await self.async_send(data)

    async with SocketClient(Kitchen.as_asgi) as client:
        await client.receive_json()
        print("ready", flush=True)
        await client.receive_json(WAIT_SECONDS)  # The other process starts meanwhile.
    print_spans(spans)


async def view(url: str, spans: Spans) -> None:
    """A WSGI request to a view that publishes, within the span of the request."""
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["testserver"], ROOT_URLCONF=__name__, SECRET_KEY="secret", BROKER=url
    )
    import django

    django.setup()
    from django.test import Client

    def request() -> None:
        with spans.provider.get_tracer("test").start_as_current_span("GET /order/"):
            assert Client().get("/order/").status_code == 204

    async with open_hub(url) as hub, hub.subscribe(REPLIES) as events:
        await asyncio.to_thread(request)
        reply = await anext(events)
        assert json.loads(getattr(reply, "payload", b"null")) == {"cooked": "soup"}, reply
        # The span of the delivery ends with it, which is before this task runs again.
    print_spans(spans)


def order(request: Any) -> Any:
    from django.conf import settings
    from django.http import HttpResponse

    assert trace.get_current_span().is_recording()
    Broadcaster(settings.BROKER).broadcast(ORDERS, "soup")
    return HttpResponse(status=204)


def url_patterns() -> list[Any]:
    from django.urls import path

    return [path("order/", order)]


if __name__ == "__main__":
    role, broker_url = sys.argv[1:]
    if role == "view":
        urlpatterns = url_patterns()
    with spans_of_process() as process_spans:
        asyncio.run((view if role == "view" else socket)(broker_url, process_spans))
