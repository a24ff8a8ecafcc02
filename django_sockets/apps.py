"""Where Django looks for the app of `INSTALLED_APPS`; it lives in `integration`."""

from .integration.apps import DjangoSocketsConfig

__all__ = ["DjangoSocketsConfig"]
