"""The ASGI application: Django serves the pages, the socket class serves websockets with a user."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from django_sockets.middleware import secure
from django_sockets.utils import ProtocolTypeRouter, URLRouter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
pages = ASGIStaticFilesHandler(get_asgi_application())  # This must come first: it sets Django up.

from .urls import websocket_urlpatterns  # noqa: E402

# Without a login, a page is refused with 4401. When its login ends, it is closed with 4401.
websockets = secure(URLRouter(websocket_urlpatterns), require_user=True)
application = ProtocolTypeRouter({"http": pages, "websocket": websockets})
