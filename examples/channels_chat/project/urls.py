"""Routes of pages and websockets."""

from django.urls import path, re_path
from rooms.consumers import RoomConsumer
from rooms.views import announce, index, room

urlpatterns = [
    path("", index),
    path("room/<slug:name>/", room, name="room"),
    path("room/<slug:name>/announce/", announce),
]
websocket_urlpatterns = [re_path(r"^ws/room/(?P<name>[\w-]+)/$", RoomConsumer.as_asgi())]
