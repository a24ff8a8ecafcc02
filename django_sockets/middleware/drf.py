"""DRFTokenAuthMiddleware: the tokens of Django REST framework."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import Any

from ..connection.limits import check_list
from ..errors import pip_command
from .base import AsgiApplication
from .signals import connect_token_signals
from .token import BaseTokenAuthMiddleware

__all__ = ["DRFTokenAuthMiddleware"]

CHUNK = 500
"""The most tokens of one query."""


class DRFTokenAuthMiddleware(BaseTokenAuthMiddleware):
    """Sets `scope["user"]` from a token of `rest_framework.authtoken`, with one query.

    Deleting the token closes its open sockets with 4401.

    Args:
        app: the ASGI application.
        select_related: fields of the token to load with it, such as ["user__profile"]. The user
            is always loaded.

    The other arguments are those of `BaseTokenAuthMiddleware`.

    Raises:
        ImportError: Django REST framework is not installed.
        AppMissing: `rest_framework.authtoken` is not in INSTALLED_APPS.
    """

    def __init__(
        self,
        app: AsgiApplication,
        select_related: Sequence[str] | None = None,
        *,
        query_parameter: str | None = None,
        require_user: bool = False,
        session_check_seconds: float = 5.0,
        outage_seconds: float = 600.0,
    ) -> None:
        try:
            importlib.import_module("rest_framework.authtoken")
        except ImportError as exc:
            raise ImportError(
                f"{type(self).__name__} needs Django REST framework: run {pip_command('drf')}, and "
                "add 'rest_framework.authtoken' to INSTALLED_APPS"
            ) from exc
        self.required_apps = (*self.required_apps, "rest_framework.authtoken")
        super().__init__(
            app,
            query_parameter=query_parameter,
            require_user=require_user,
            session_check_seconds=session_check_seconds,
            outage_seconds=outage_seconds,
        )
        check_list("select_related", select_related or ())
        self.select_related = ("user", *(select_related or ()))
        connect_token_signals()

    def get_user(self, token: str) -> Any:
        found = _tokens().select_related(*self.select_related).filter(key=token).first()
        return None if found is None else found.user

    def valid_tokens(self, tokens: Sequence[str]) -> Collection[str]:
        found: set[str] = set()
        for start in range(0, len(tokens), CHUNK):
            chunk = _tokens().filter(key__in=tokens[start : start + CHUNK])
            found.update(chunk.values_list("key", flat=True))
        return found


def _tokens() -> Any:
    from django.apps import apps

    return apps.get_model("authtoken", "Token")._default_manager
