"""The module in which Django looks for the app of `INSTALLED_APPS`. It re-exports the class."""

from .integration.apps import DjangoSocketsConfig

__all__ = ["DjangoSocketsConfig"]
