"""What the server runs: pages go to Django, websockets to the socket class of their address."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
pages = ASGIStaticFilesHandler(get_asgi_application())

from django.urls import Resolver404, URLResolver  # noqa: E402
from django.urls.resolvers import RegexPattern  # noqa: E402

from .urls import ChatSocket, websocket_urlpatterns  # noqa: E402

websockets = URLResolver(RegexPattern(r"^/"), websocket_urlpatterns)


async def application(scope, receive, send):
    if scope["type"] == "http":
        app = pages
    elif scope["type"] == "websocket":
        try:
            app = websockets.resolve(scope["path"]).func
        except Resolver404:
            await receive()
            await send({"type": "websocket.close"})  # Before an accept: the server answers 403.
            return
    else:
        app = ChatSocket.as_asgi  # "lifespan": closes the broker when the server stops.
    await app(scope, receive, send)
