"""Whether a user may still be served: Django's own rules, for one user and for many at once.

Everything here works on the database and belongs on a thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any

__all__ = ["Login", "is_current", "load_user", "usable"]

CHUNK = 1000
"""Users of one query; a database that takes fewer parameters gets fewer."""


@dataclasses.dataclass(frozen=True)
class Login:
    """What a session or a token says about its user.

    Attributes:
        pk: the user's primary key.
        backend: dotted path of the authentication backend; empty for a token.
        auth_hash: the session's hash of the password; None where there is none to compare.
    """

    pk: Any
    backend: str = ""
    auth_hash: str | None = dataclasses.field(default=None, repr=False)


def load_user(login: Login, select_related: Sequence[str]) -> Any:
    """The user of a session, or None; one query unless the backend has a way of its own."""
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
    """Those whose user is still there, active and has the password of then.

    One query for all the users of Django's own backends and of tokens, in chunks; other backends
    are asked for each user.
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
    """Whether this user, as loaded now, may be served on this login."""
    from django.utils.crypto import constant_time_compare

    if user is None:
        return False
    # AllowAllUsersModelBackend, for one, lets inactive users in by this method.
    allows = getattr(backend, "user_can_authenticate", None)
    if not (allows(user) if allows is not None else getattr(user, "is_active", True)):
        return False
    if not login.backend or not hasattr(user, "get_session_auth_hash"):
        return True
    if not login.auth_hash:
        return False
    if constant_time_compare(login.auth_hash, user.get_session_auth_hash()):
        return True
    # Under SECRET_KEY_FALLBACKS. Django moves such a session to a new key at the user's next
    # request; a websocket cannot set the cookie for it, so here it only counts as valid.
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
