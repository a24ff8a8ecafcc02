"""Django, if this process uses it: its settings, its rules for a request, its database connections.

This is the only module of the core that imports Django, and it does so only inside functions. Every
function also works if Django is absent, or is installed but not configured. Django works without an
entry in INSTALLED_APPS.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .errors import ConfigurationError
from .overrides import database_contexts

__all__ = [
    "Site",
    "database_hygiene",
    "django_settings",
    "django_site",
    "lazy_text",
    "on_database_connection",
    "script_prefix",
    "signed",
    "unsigned",
]


def django_settings() -> Any:
    """Django's settings; None if Django is absent or not configured."""
    if "django" not in sys.modules and "DJANGO_SETTINGS_MODULE" not in os.environ:
        return None
    try:
        from django.conf import settings
    except ImportError:
        return None
    if not settings.configured and "DJANGO_SETTINGS_MODULE" not in os.environ:
        return None
    return settings


class Site(NamedTuple):
    """The site to which a request was sent.

    Attributes:
        schemes: "http" or "https", or both if the server does not tell.
        host: the host with its port, if there is one; None if the host is not allowed.
        trusted: further trusted origins.
        problem: the reason why the host is not allowed.
        django: True if Django's settings were used.
    """

    schemes: Sequence[str]
    host: str | None
    trusted: Sequence[str] = ()
    problem: str = ""
    django: bool = False


_SCHEMES = {"ws": "http", "wss": "https"}


def django_site(scope: Mapping[str, Any]) -> Site | None:
    """The site of a request by the rules of Django; None without Django.

    The host is the result of `get_host()`, which checks ALLOWED_HOSTS. The scheme takes
    SECURE_PROXY_SSL_HEADER into account.
    """
    settings = django_settings()
    if settings is None:
        return None
    from django.core.exceptions import DisallowedHost
    from django.core.handlers.asgi import ASGIRequest

    trusted = settings.CSRF_TRUSTED_ORIGINS
    if isinstance(trusted, str):  # Django's own system check reports this.
        trusted = ()
    known = _SCHEMES.get(scope.get("scheme") or "")
    as_http = {**scope, "type": "http", "method": "GET", "query_string": b""}
    as_http["scheme"] = known or "http"
    request = ASGIRequest(as_http, io.BytesIO())
    schemes: list[str] = [request.scheme or "http"]
    if known is None:
        # Try the other scheme, too. A header of the proxy overrides both.
        scope = {**as_http, "scheme": "https"}
        schemes.append(ASGIRequest(scope, io.BytesIO()).scheme or "https")
    try:
        return Site(schemes, request.get_host(), trusted, django=True)
    except DisallowedHost:
        host = (request.headers.get("host") or "")[:200]
        problem = f"Host {host!r} is not in ALLOWED_HOSTS"
        return Site(schemes, None, trusted, problem, django=True)


def script_prefix(scope: Mapping[str, Any]) -> str:
    """The path below which the application is mounted, without a slash at its end.

    As in Django's ASGI handler, it is the setting FORCE_SCRIPT_NAME, else the `root_path` of the
    server.
    """
    forced = getattr(django_settings(), "FORCE_SCRIPT_NAME", None)
    prefix: str = forced or scope.get("root_path") or ""
    return prefix.rstrip("/")


def signed(data: Any, salt: str) -> str:
    """Data as a text that is signed with the SECRET_KEY and safe in a URL.

    Raises:
        ConfigurationError: Django is absent or not configured.
    """
    if django_settings() is None:
        raise ConfigurationError(
            "signing needs Django's SECRET_KEY: set DJANGO_SETTINGS_MODULE, or call "
            "settings.configure(SECRET_KEY=...)"
        )
    from django.core import signing

    text: str = signing.dumps(data, salt=salt)
    return text


def unsigned(text: str, salt: str) -> Any:
    """The data of a text that `signed` returned, also with a key of SECRET_KEY_FALLBACKS.

    Returns:
        None if nobody signed the text, or Django is absent or not configured.
    """
    if django_settings() is None:
        return None
    from django.core import signing

    try:
        return signing.loads(text, salt=salt)
    except Exception:  # Besides BadSignature, it raises errors of base64, zlib and JSON.
        return None


def lazy_text(value: object) -> str | None:
    """The text of one of Django's lazy strings; None for other values."""
    functional = sys.modules.get("django.utils.functional")
    if functional is not None and isinstance(value, functional.Promise):
        return str(value)
    return None


def on_database_connection(receiver: Callable[..., None]) -> bool:
    """Connect `receiver` to Django's signal `connection_created`; False if Django is not in use.

    Args:
        receiver: a module-level function. It is called on the thread that has connected.
    """
    if django_settings() is None:
        return False
    from django.db.backends.signals import connection_created

    connection_created.connect(receiver, dispatch_uid="django_sockets.connection_created")
    return True


@contextlib.contextmanager
def database_hygiene() -> Iterator[None]:
    """A context for a `def` handler on a worker thread, as Django has around a request.

    Connections that are broken or older than `CONN_MAX_AGE` are closed before and after.
    """
    if database_contexts:
        with database_contexts[-1]():
            yield
        return
    db = sys.modules.get("django.db")
    if (
        db is None or django_settings() is None
    ):  # Its import alone does not mean that Django is configured.
        yield
        return
    db.close_old_connections()
    try:
        yield
    finally:
        db.close_old_connections()
