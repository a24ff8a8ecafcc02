"""Routes of pages and websockets."""

from chat.sockets import ChatSocket
from chat.views import room
from django.urls import path

urlpatterns = [path("", room)]
websocket_urlpatterns = [path("ws/", ChatSocket.as_asgi)]
