"""Routes of the page, the API and websockets."""

from counter.sockets import CounterSocket
from counter.views import CountView, page
from django.urls import path

urlpatterns = [path("", page), path("api/count/", CountView.as_view())]
websocket_urlpatterns = [path("ws/count/", CounterSocket.as_asgi)]
