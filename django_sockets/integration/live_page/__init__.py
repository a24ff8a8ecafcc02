"""The live page in Django's admin: what all processes with sockets do at this moment.

- `views`: the pages and their data.
- `access`: who may see them.
- `feed`: surveys the processes while somebody looks.
- `pictures`: the data of one moment, within a bounded size.
- `viewers`: open pages whose user has lost the right to see them.
- `broker_check`: the report about the broker.

`django_sockets.urls` has the URLs of the page for the configured broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

from ...conf import Source

if TYPE_CHECKING:
    from django.urls import URLPattern

__all__ = ["live_page_urls"]

NEEDED = {
    "django.contrib.admin": "the page is a part of Django's admin",
    "django_sockets": "its templates and static files are in this app",
}
"""Apps of INSTALLED_APPS, and the reason why the page needs them."""


def live_page_urls(config: Source | None = None) -> list[URLPattern]:
    """The URLs of the live page.

    `django_sockets.urls` calls this for the configured broker. Call it for another broker of the
    project, with a namespace of its own:

        path("admin/chat-sockets/", include((live_page_urls("redis://chat"), "chat_sockets")))

    Args:
        config: the broker; None for the configured one.

    Raises:
        ImproperlyConfigured: an app is missing in INSTALLED_APPS.
        ConfigurationError: `config` is wrong.
    """
    for app, reason in NEEDED.items():
        if not apps.is_installed(app):
            raise ImproperlyConfigured(
                f"the live page of django_sockets needs {app!r} in INSTALLED_APPS: {reason}"
            )
    from .views import LivePage  # It imports the admin, whose models need INSTALLED_APPS.

    return LivePage(config).urls
