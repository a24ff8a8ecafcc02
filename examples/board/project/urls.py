"""Routes of pages and websockets."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path
from orders import views
from orders.sockets import BoardSocket

urlpatterns = [
    path("", views.board),
    path("state/", views.state, name="state"),
    path("token/", views.token, name="token"),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("admin/sockets/", include("django_sockets.urls")),  # All sockets, live.
    path("admin/", admin.site.urls),
]
websocket_urlpatterns = [path("ws/", BoardSocket.as_asgi)]
