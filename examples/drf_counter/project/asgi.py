"""The ASGI application: Django serves the page and the API; websockets need a token."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from django_sockets.middleware import DRFTokenAuthMiddleware
from django_sockets.utils import ProtocolTypeRouter, URLRouter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
pages = ASGIStaticFilesHandler(get_asgi_application())  # This must come first: it sets Django up.

from .urls import websocket_urlpatterns  # noqa: E402

websockets = DRFTokenAuthMiddleware(URLRouter(websocket_urlpatterns), require_user=True)
application = ProtocolTypeRouter({"http": pages, "websocket": websockets})
