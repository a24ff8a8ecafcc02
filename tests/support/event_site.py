"""A site with server-sent events, for server processes. EVENT_SITE_URL is its broker."""

import json
import os
from pathlib import Path

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import FileResponse, HttpResponse, JsonResponse
from django.urls import path

import django

RULES = {"kept:": {"messages": 10_000, "seconds": 600}}
CONFIG = {"url": os.environ.get("EVENT_SITE_URL", "memory://"), "history": RULES}
PAGE = "<!doctype html><title>events</title><link rel=icon href=data:>"
STATIC = Path(__file__).resolve().parents[2] / "django_sockets/static/django_sockets"

if "EVENT_SITE_URL" in os.environ:
    settings.configure(
        SECRET_KEY="only for tests",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=__name__,
        DJANGO_SOCKETS_CONFIG=CONFIG,
        INSTALLED_APPS=["django_sockets"],
    )
    django.setup()

    from django_sockets.broadcaster import Broadcaster
    from django_sockets.integration import events_view
    from django_sockets.runtime import local_hubs

    async def say(request):
        for number in range(int(request.GET.get("count", 1))):
            data = json.loads(request.GET["data"]) + number
            await Broadcaster().async_broadcast(request.GET["channel"], data)
        return HttpResponse("said")

    async def stats(request):
        names = ("event_streams", "subscribers")
        return JsonResponse(
            {name: sum(hub.stats()[name] for hub in local_hubs()) for name in names}
        )

    urlpatterns = [
        path("", lambda request: HttpResponse(PAGE)),
        path("client.js", lambda request: FileResponse((STATIC / "events.js").open("rb"))),
        path("events/", events_view(["kept:1", "kept:2", "news"], retry_seconds=0.2)),
        path("kept/", events_view(["kept:1", "kept:2"], retry_seconds=0.2)),
        path("say/", say),
        path("stats/", stats),
    ]
    application = get_asgi_application()
