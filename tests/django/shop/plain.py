"""The application of asgi.py without static files, which the server may add."""

from django.core.asgi import get_asgi_application
from django.urls import path

from django_sockets.utils import ProtocolTypeRouter, URLRouter

from .sockets import Counter

websockets = URLRouter([path("ws/<int:room>/", Counter.as_asgi)])
application = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": websockets})
