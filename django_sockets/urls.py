"""The live page for a URLconf: `path("admin/sockets/", include("django_sockets.urls"))`."""

from __future__ import annotations

from .integration.live_page import live_page_urls

__all__ = ["app_name", "urlpatterns"]

app_name = "django_sockets"
urlpatterns = live_page_urls()
