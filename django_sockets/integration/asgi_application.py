"""The project's ASGI application, named by the setting ASGI_APPLICATION."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

__all__ = ["asgi_application", "asgi_application_path"]


def asgi_application_path() -> str | None:
    """The setting, such as "mysite.asgi.application"; None if it is missing."""
    path: str | None = getattr(settings, "ASGI_APPLICATION", None)
    return path


def asgi_application() -> Any:
    """Import the application.

    Raises:
        ImproperlyConfigured: the setting is missing, or the import failed; the error of the
            import is the `__cause__`.
    """
    path = asgi_application_path()
    if path is None:
        raise ImproperlyConfigured("ASGI_APPLICATION is not set")
    try:
        return import_string(path)
    except Exception as exc:  # A module may raise anything.
        raise ImproperlyConfigured(
            f"ASGI_APPLICATION = {path!r} cannot be imported: {type(exc).__name__}: {exc}"
        ) from exc
