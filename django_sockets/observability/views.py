"""The Django view from which Prometheus reads the metrics."""

from __future__ import annotations

import hmac
import os

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .prometheus import metrics_text

__all__ = ["metrics_view"]

TOKEN_SETTING = "DJANGO_SOCKETS_METRICS_TOKEN"  # noqa: S105 - a name
"""Name of the Django setting, or of the environment variable, with the token."""
REFUSAL = (
    "The metrics are for staff, and for requests with the header 'Authorization: Bearer' and the "
    f"token of the setting {TOKEN_SETTING}.\n"
)


@login_not_required
@never_cache
@require_safe
def metrics_view(request: HttpRequest) -> HttpResponse:
    """Answer with the metrics of this process, or of all processes in multiprocess mode.

    Two kinds of readers may see them; all others get 403:

    - a request with the header `Authorization: Bearer TOKEN`. The token is the Django setting
      `DJANGO_SOCKETS_METRICS_TOKEN`, or else the environment variable of that name. Without either,
      no token is right.
    - a user who is logged in and is active staff.
    """
    if not (_has_token(request) or _is_staff(request)):
        return HttpResponse(REFUSAL, status=403, content_type="text/plain; charset=utf-8")
    text, content_type = metrics_text(request.headers.get("Accept", ""))
    return HttpResponse(text, content_type=content_type)


def _has_token(request: HttpRequest) -> bool:
    expected = getattr(settings, TOKEN_SETTING, None) or os.environ.get(TOKEN_SETTING)
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if not expected or scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.strip().encode(), str(expected).encode())


def _is_staff(request: HttpRequest) -> bool:
    user = getattr(request, "user", None)  # Without AuthenticationMiddleware there is none.
    return bool(getattr(user, "is_active", False) and getattr(user, "is_staff", False))
