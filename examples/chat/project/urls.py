"""Routes of pages and websockets."""

from chat.sockets import ChatSocket
from chat.views import page
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

urlpatterns = [
    path("", page),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
]
websocket_urlpatterns = [path("ws/", ChatSocket.as_asgi)]
