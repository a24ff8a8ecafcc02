"""Template tags for pages with the browser client.

{% load django_sockets %}
{% django_sockets_client %}
<main data-token="{% channel_token "order:7" since=since %}"></main>
<script type="module" nonce="{{ csp_nonce }}">
  import { connect } from "django-sockets";
</script>
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.template import Context
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from django import template

from ..signed_channels import channel_token

__all__ = ["channel_token_tag", "django_sockets_client"]

register = template.Library()

MODULES = {
    "django-sockets": "django_sockets/client.js",
    "django-sockets/events": "django_sockets/events.js",
    "django-sockets/react": "django_sockets/react.js",
}
"""Names for `import` in a page, and the static files."""
_FROM_REQUEST = object()


@register.simple_tag(takes_context=True, name="channel_token")
def channel_token_tag(
    context: Context,
    channel: str | int,
    *,
    user: Any = _FROM_REQUEST,
    session: Any = None,
    expires_seconds: float = 600,
    presence: bool = False,
    since: str | Mapping[str, str] | None = None,
) -> str:
    """A token for the user of the request; see `django_sockets.signed_channels.channel_token`.

    Args:
        user: another user. For a page without login write `user=None`; anybody who has the token
            may then use it.
    """
    if user is _FROM_REQUEST:
        request = context.get("request")
        user = getattr(request, "user", None) if request is not None else context.get("user")
        if user is None:
            raise template.TemplateSyntaxError(
                "channel_token finds no user: use the context processor "
                "django.template.context_processors.request, or write user=None for a token that "
                "anybody may use"
            )
    return channel_token(
        channel,
        user=user,
        session=session,
        expires_seconds=expires_seconds,
        presence=presence,
        since=since,
    )


@register.simple_tag(takes_context=True)
def django_sockets_client(context: Context, *, nonce: str | None = None) -> SafeString:
    """An import map for the browser client, so that a page writes `import "django-sockets"`.

    It stands before the first module of the page. A browser takes the addresses of the static files
    from it, with the hashes of a `ManifestStaticFilesStorage`.

    Args:
        nonce: for the Content-Security-Policy. Default: `csp_nonce` of the context or of the
            request, if there is one.
    """
    if nonce is None:
        found = context.get("csp_nonce")
        if found is None:
            found = getattr(context.get("request"), "csp_nonce", None)
        # The lazy nonce of Django 6.0 is false until it is first used.
        nonce = None if found is None else str(found) or None
    text = json.dumps({"imports": {name: static(path) for name, path in MODULES.items()}})
    # Inside a script, HTML knows no escapes, and "</" could end it.
    safe = mark_safe(text.replace("<", "\\u003c"))  # noqa: S308 - JSON without "<"
    if nonce is None:
        return format_html('<script type="importmap">{}</script>', safe)
    return format_html('<script type="importmap" nonce="{}">{}</script>', nonce, safe)
