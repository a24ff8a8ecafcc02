"""The rights to see the live page, and to close sockets on it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.contrib import admin
from django.contrib.auth import get_permission_codename, get_user_model
from django.http import HttpRequest, HttpResponse

__all__ = ["forbidden", "foreign", "may_close", "may_see"]


def may_see(request: HttpRequest) -> bool:
    """Whether the user may see the page: by the rule of the admin, active staff."""
    return getattr(request, "user", None) is not None and admin.site.has_permission(request)


def may_close(request: HttpRequest) -> bool:
    """Whether the user may close the sockets of others: this needs the right to change users."""
    options = get_user_model()._meta
    permission = f"{options.app_label}.{get_permission_codename('change', options)}"
    user: Any = request.user  # Of any user model.
    return may_see(request) and bool(user.has_perm(permission))


def foreign(request: HttpRequest) -> bool:
    """Whether a page of another site has made the request, by the headers of the browser."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("Origin")
    # Only the host is compared: behind a proxy that ends TLS, Django may not know the scheme.
    return origin is not None and urlsplit(origin).netloc.lower() != request.get_host().lower()


def forbidden(request: HttpRequest) -> HttpResponse | None:
    """The refusal of a request for data; None for staff on a page of this site."""
    if not may_see(request):
        problem = "Only staff of this site may see this. Log in to the admin."
    elif foreign(request):
        problem = "Pages of other sites may not read this."
    else:
        return None
    return HttpResponse(f"{problem}\n", status=403, content_type="text/plain; charset=utf-8")
