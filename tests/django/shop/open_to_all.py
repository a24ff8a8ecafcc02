"""An application with a socket class that any page may connect to."""

from django.urls import path

from django_sockets.sockets import BaseSocketServer
from django_sockets.utils import ProtocolTypeRouter, URLRouter


class Open(BaseSocketServer):
    allowed_origins = ("*",)


application = ProtocolTypeRouter({"websocket": URLRouter([path("ws/", Open.as_asgi)])})
