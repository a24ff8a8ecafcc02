"""Credential providers: the user name and password of each new connection.

The URL option `auth` selects a provider. Providers without dependencies are here; those that call a
cloud's SDK are in `cloud_credentials`. Other packages add theirs through the entry-point group
`django_sockets.credentials`, `name = "module:Class"`; the class is called as `Class(url, extra)`.
Backends import this module, which imports no driver.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...errors import AuthError, BrokerError, ConfigurationError
from ...redaction import without_frames
from ...url import BrokerURL, suggest

__all__ = [
    "AUTH_OPTIONS",
    "CredentialProvider",
    "Credentials",
    "auth_options",
    "load_provider",
    "rotation_delay_seconds",
]

ENTRY_POINT_GROUP = "django_sockets.credentials"

AUTH_OPTIONS = {
    "auth": "where credentials come from: url (default), env, file, iam, entra, google, "
    "or the name of an installed provider",
    "auth_file": "file: its path; the password, or the user name on a line before it",
    "cache": "iam: name of the replication group, serverless cache or MemoryDB cluster",
    "connection_max_age_seconds": "connections are replaced before this age; can only shorten "
    "what the provider says",
    "region": "iam: such as eu-west-1",
    "serverless": "iam: true or false; by default true for redis+serverless://",
    "service": "iam: elasticache (default) or memorydb",
    "user": "iam, entra: the user name; by default that of the URL, for entra that of the token",
}
_FOR_ALL = frozenset({"auth", "connection_max_age_seconds"})


class Credentials(NamedTuple):
    """A user name and a password or token, or None. The repr does not show the password."""

    username: str | None
    password: str | None

    def __repr__(self) -> str:
        password = None if self.password is None else "***"
        return f"Credentials(username={self.username!r}, password={password})"


class CredentialProvider(Protocol):
    """Gives the credentials of each connection.

    Attributes:
        max_age_seconds: the age before which a connection with the last credentials must be
            replaced; None for never. It is read after `credentials()`.

    A class may also have `options`, a mapping of option name to one line of help. It declares the
    URL options of the provider; other options are refused.
    """

    @property
    def max_age_seconds(self) -> float | None: ...

    async def credentials(self) -> Credentials:
        """The credentials for a new connection; called before each connection is made.

        It must not block the event loop. It may be cancelled, because connecting has a deadline.

        Raises:
            AuthError: there are no credentials; the message says what to do. Returning empty
                credentials instead is wrong.
            ConnectError: they are not available at the moment. Other exceptions become AuthError.
        """


def auth_options(url: BrokerURL) -> dict[str, str]:
    """The options that `url` may have: `AUTH_OPTIONS` and those that its provider declares.

    Raises:
        ConfigurationError: unknown provider, or its package is missing.
    """
    own: Mapping[str, str] = getattr(_provider_class(url, dict(url.extra)), "options", {})
    return {**own, **AUTH_OPTIONS}


def load_provider(url: BrokerURL, extra: Mapping[str, str]) -> CredentialProvider:
    """Make the provider that the option `auth` names.

    Args:
        url: the broker's URL.
        extra: the scheme's options, as `url.check_extra` returned them.

    Raises:
        ConfigurationError: the provider is unknown, its package is missing, or an option is
            missing, wrong or of another provider.
    """
    cls = _provider_class(url, extra)
    uses = getattr(cls, "uses", None)  # The options in AUTH_OPTIONS that a built-in provider reads.
    for name in extra:
        if uses is not None and name in AUTH_OPTIONS and name not in _FOR_ALL | uses:
            raise ConfigurationError(
                f"{url}: option {name!r} means nothing for auth={extra.get('auth', 'url')}; "
                f"{suggest(name, _FOR_ALL | uses)}"
            )
    return _Provider(url, cls(url, extra), _max_age_seconds(url, extra))


def rotation_delay_seconds(max_age_seconds: float, random: float) -> float:
    """When to replace a connection with a maximum age: after 75% to 90% of it, in seconds.

    The spread prevents processes that started together from reconnecting together. The rest of
    the age leaves time for connecting and for repeated attempts.

    Args:
        max_age_seconds: the provider's value, read after the connection's `credentials()`.
        random: a random number from 0 to 1, another one for each connection.
    """
    return max_age_seconds * (0.75 + 0.15 * random)


class _Provider:
    """Wraps a provider: raises only our errors, applies the smaller age, hides its repr."""

    def __init__(self, url: BrokerURL, inner: CredentialProvider, limit: float | None) -> None:
        self._url = url
        self._inner = inner
        self._limit = limit

    @property
    def max_age_seconds(self) -> float | None:
        ages = [age for age in (self._inner.max_age_seconds, self._limit) if age is not None]
        return min(ages, default=None)

    async def credentials(self) -> Credentials:
        try:
            return Credentials(*await self._inner.credentials())
        except BrokerError as exc:
            error = without_frames(exc)
        except Exception as exc:
            name = type(self._inner).__name__
            problem = f"the credential provider {name} failed: {type(exc).__name__}"
            error = AuthError(self._url, problem)
        raise error

    def __repr__(self) -> str:
        return f"<{type(self._inner).__name__} for {self._url}>"


class UrlCredentials:
    """`auth=url`: the user info of the URL, else of the `hosts` entry; both may be empty."""

    uses: frozenset[str] = frozenset()
    max_age_seconds = None

    def __init__(self, url: BrokerURL, extra: Mapping[str, str]) -> None:
        self._credentials = Credentials(url.username, url.password)
        self._driver_provider: Any = None
        if not url.username and not url.password:
            given = (url.driver_options.get(name) for name in Credentials._fields)
            self._credentials = Credentials(*(None if v is None else str(v) for v in given))
            self._driver_provider = url.driver_options.get("credential_provider")

    async def credentials(self) -> Credentials:
        if self._driver_provider is None:
            return self._credentials
        # A provider of redis-py returns a password, or a user name and a password.
        given = await self._driver_provider.get_credentials_async()
        return Credentials(given[0] if len(given) > 1 else None, given[-1])


class EnvironmentCredentials:
    """`auth=env`: two environment variables, read at each connect."""

    uses: frozenset[str] = frozenset()
    max_age_seconds = None

    def __init__(self, url: BrokerURL, extra: Mapping[str, str]) -> None:
        refuse_password(url, "env")
        self._url = url

    async def credentials(self) -> Credentials:
        password = os.environ.get("DJANGO_SOCKETS_PASSWORD")
        if not password:
            raise AuthError(self._url, "auth=env: set the variable DJANGO_SOCKETS_PASSWORD")
        username = os.environ.get("DJANGO_SOCKETS_USERNAME") or self._url.username
        return Credentials(username, password)


class FileCredentials:
    """`auth=file`: a mounted secret, read at each connect."""

    uses = frozenset({"auth_file"})
    max_age_seconds = None

    def __init__(self, url: BrokerURL, extra: Mapping[str, str]) -> None:
        refuse_password(url, "file")
        self._url = url
        self._path = Path(required(url, "file", "auth_file", extra.get("auth_file")))

    async def credentials(self) -> Credentials:
        try:
            text = await asyncio.to_thread(self._path.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            reason = getattr(exc, "strerror", None) or "it is not UTF-8 text"
            problem = f"option auth_file: {reason}"
        else:
            lines = text.splitlines()
            if 1 <= len(lines) <= 2 and all(lines):
                return Credentials(lines[0] if len(lines) == 2 else self._url.username, lines[-1])
            problem = (
                "option auth_file: write the password on one line, or the user name on a line "
                "before it"
            )
        text, lines = "", []
        raise AuthError(self._url, problem)


def required(url: BrokerURL, auth: str, name: str, value: str | None) -> str:
    """The value of an option. Raises ConfigurationError if it is missing."""
    if not value:
        raise ConfigurationError(
            f"{url}: auth={auth} needs the option {name!r} ({AUTH_OPTIONS[name]})"
        )
    return value


def refuse_password(url: BrokerURL, auth: str) -> None:
    """Refuse a password in the URL, because `auth` already names its source."""
    if url.password or url.driver_options.get("password"):
        raise ConfigurationError(
            f"{url}: a password conflicts with auth={auth}: remove one of the two"
        )


_BUILT_IN = {
    "url": f"{__name__}:UrlCredentials",
    "env": f"{__name__}:EnvironmentCredentials",
    "file": f"{__name__}:FileCredentials",
    "iam": f"{__package__}.cloud_credentials:IamCredentials",
    "entra": f"{__package__}.cloud_credentials:EntraCredentials",
    "google": f"{__package__}.cloud_credentials:GoogleCredentials",
}


def _provider_class(url: BrokerURL, extra: Mapping[str, str]) -> Any:
    auth = extra.get("auth", "url")
    # An installed provider cannot replace a built-in one.
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    known = {**found, **_BUILT_IN}
    if auth not in known:
        raise ConfigurationError(f"{url}: option auth: unknown; {suggest(auth, known)}")
    module_name, _, class_name = known[auth].partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as exc:
        raise ConfigurationError(f"{url}: auth={auth}: cannot load {known[auth]}: {exc}") from exc


def _max_age_seconds(url: BrokerURL, extra: Mapping[str, str]) -> float | None:
    text = extra.get("connection_max_age_seconds")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigurationError(
            f"{url}: option connection_max_age_seconds: use a number over 0, such as 3600"
        )
    return seconds
