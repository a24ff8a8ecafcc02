"""The ASGI application: Django serves the pages, the socket class serves websockets."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from django_sockets.utils import ProtocolTypeRouter, URLRouter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
pages = ASGIStaticFilesHandler(get_asgi_application())

from .urls import websocket_urlpatterns  # noqa: E402

websockets = URLRouter(websocket_urlpatterns)
application = ProtocolTypeRouter({"http": pages, "websocket": websockets})
