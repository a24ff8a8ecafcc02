"""News as server-sent events: Starlette with a broker, without Django settings."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from django_sockets import Message, PublishError, open_hub

CHANNEL = "news"
PAGE = Path(__file__).with_name("page.html")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # The process has one hub. All readers share its connection to the broker.
    async with open_hub(os.environ.get("DJANGO_SOCKETS_URL", "memory://")) as hub:
        app.state.hub = hub
        yield


async def page(request: Request) -> FileResponse:
    return FileResponse(PAGE)


async def publish(request: Request) -> PlainTextResponse:
    """Publish the line of text in the body of a POST request."""
    line = b" ".join((await request.body()).split())
    try:
        await request.app.state.hub.publish(CHANNEL, line)
    except PublishError as exc:
        return PlainTextResponse(f"{exc}\n", status_code=503)
    return PlainTextResponse("published\n")


async def stream(request: Request) -> StreamingResponse:
    """Stream the news from now on, for the `EventSource` of a page or for curl."""
    return StreamingResponse(events(request.app.state.hub), media_type="text/event-stream")


async def events(hub) -> AsyncIterator[bytes]:
    async with hub.subscribe(CHANNEL) as news:
        yield b": subscribed\n\n"
        async for event in news:
            if isinstance(event, Message):
                yield b"data: " + event.payload + b"\n\n"
            else:  # A Gap: messages may be missing here.
                yield b"event: gap\ndata: " + event.reason.encode() + b"\n\n"


routes = [
    Route("/", page),
    Route("/news", publish, methods=["POST"]),
    Route("/news", stream),
]
app = Starlette(routes=routes, lifespan=lifespan)
