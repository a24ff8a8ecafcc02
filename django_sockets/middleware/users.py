"""Django's rules for whether a login is still valid, for one user and for many at once.

Every function here queries the database: call it on a thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any

__all__ = ["Login", "is_current", "load_user", "usable"]

CHUNK = 1000
"""The most users of one query. Django sends fewer to a database that takes fewer parameters."""


@dataclasses.dataclass(frozen=True)
class Login:
    """The user that a session or a token names.

    Attributes:
        pk: the user's primary key.
        backend: dotted path of the authentication backend; empty for a token.
        auth_hash: the session's hash of the password; None if it has none.
    """

    pk: Any
    backend: str = ""
    auth_hash: str | None = dataclasses.field(default=None, repr=False)


def load_user(login: Login, select_related: Sequence[str]) -> Any:
    """The user of a session, or None; one query, unless the backend overrides `get_user`."""
    from django.db.models import prefetch_related_objects

    backend = _backend(login)
    if backend is None:
        return None
    if _is_plain(backend):
        users = _users().select_related(*select_related) if select_related else _users()
        user = users.filter(pk=login.pk).first()
    else:
        user = backend.get_user(login.pk)
        if user is not None and select_related:
            prefetch_related_objects([user], *select_related)
    return user if is_current(login, user, backend) else None


def usable(logins: Iterable[Login]) -> Collection[Login]:
    """The logins whose user still exists, is active and has the same password as at the login.

    Users of Django's own backends and of tokens take one query for each `CHUNK` of them. Other
    backends are called once for each user.
    """
    backends = {}
    for login in logins:
        backend = _backend(login)
        if backend is not None or not login.backend:
            backends[login] = backend
    plain = {login for login, backend in backends.items() if backend is None or _is_plain(backend)}
    users: dict[Any, Any] = {}
    pks = list({login.pk for login in plain})
    for start in range(0, len(pks), CHUNK):
        users.update(_users().in_bulk(pks[start : start + CHUNK]))
    good = set()
    for login, backend in backends.items():
        user = users.get(login.pk) if login in plain else backend.get_user(login.pk)
        if is_current(login, user, backend):
            good.add(login)
    return good


def is_current(login: Login, user: Any, backend: Any = None) -> bool:
    """Whether a login is valid for this user, as it was loaded now."""
    from django.utils.crypto import constant_time_compare

    if user is None:
        return False
    # With this method AllowAllUsersModelBackend, for example, lets inactive users in.
    allows = getattr(backend, "user_can_authenticate", None)
    if not (allows(user) if allows is not None else getattr(user, "is_active", True)):
        return False
    if not login.backend or not hasattr(user, "get_session_auth_hash"):
        return True
    if not login.auth_hash:
        return False
    if constant_time_compare(login.auth_hash, user.get_session_auth_hash()):
        return True
    # The session may be signed with a key of SECRET_KEY_FALLBACKS. Django moves such a session to
    # the new key at the next request. A websocket cannot set its cookie, so the session stays.
    fallbacks = getattr(user, "get_session_auth_fallback_hash", tuple)
    return any(constant_time_compare(login.auth_hash, old) for old in fallbacks())


def _users() -> Any:
    from django.contrib.auth import get_user_model

    return get_user_model()._default_manager


def _backend(login: Login) -> Any:
    from django.conf import settings
    from django.contrib.auth import load_backend

    if not login.backend or login.backend not in settings.AUTHENTICATION_BACKENDS:
        return None
    return load_backend(login.backend)


def _is_plain(backend: Any) -> bool:
    """Whether a backend gets its users as ModelBackend does."""
    from django.contrib.auth.backends import ModelBackend

    return getattr(type(backend), "get_user", None) is ModelBackend.get_user
