"""Addresses of the page, of the API, and of websockets."""

from counter.sockets import CounterSocket
from counter.views import CountView, page
from django.urls import path

urlpatterns = [path("", page), path("api/count/", CountView.as_view())]
websocket_urlpatterns = [path("ws/count/", CounterSocket.as_asgi)]
