"""The Django app: system checks, and the commands of `manage.py`. It has no models."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["DjangoSocketsConfig"]


class DjangoSocketsConfig(AppConfig):
    name = "django_sockets"
    verbose_name = "django_sockets"

    def ready(self) -> None:
        from .checks import register_checks

        register_checks()
