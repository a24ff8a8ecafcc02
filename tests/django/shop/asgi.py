"""The one ASGI application for all servers."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.urls import path

from django_sockets.utils import ProtocolTypeRouter, URLRouter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
pages = ASGIStaticFilesHandler(get_asgi_application())

from .sockets import Counter  # noqa: E402

websockets = URLRouter([path("ws/<int:room>/", Counter.as_asgi)])
application = ProtocolTypeRouter({"http": pages, "websocket": websockets})
