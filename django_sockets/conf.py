"""The configuration: from an argument, Django's settings, the environment, or `memory://`.

This is the only module of the core that imports Django, and only inside functions. Plain Python use
works with Django installed but not configured. Django use works without an entry in INSTALLED_APPS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import quote

from .broker import Broker, Sink
from .errors import ConfigurationError
from .history import HistoryRules
from .redaction import without_frames
from .url import BrokerURL, suggest

__all__ = [
    "Config",
    "Settings",
    "Site",
    "check_hosts",
    "database_hygiene",
    "default_config",
    "default_config_and_origin",
    "django_site",
    "hygiene_is_replaced",
    "lazy_text",
    "load_config",
    "on_database_connection",
    "override_default",
    "override_hygiene",
    "script_prefix",
]

DEFAULT_URL = "memory://"
ENVIRONMENT_VARIABLE = "DJANGO_SOCKETS_URL"
DJANGO_SETTING = "DJANGO_SOCKETS_CONFIG"
DRAIN_SECONDS_VARIABLE = "DJANGO_SOCKETS_DRAIN_SECONDS"
DRAIN_ON_SIGNAL_VARIABLE = "DJANGO_SOCKETS_DRAIN_ON_SIGNAL"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Process-wide settings apart from the broker, with their defaults."""

    sync_call_timeout_seconds: float = 10.0
    """The longest wait of a plain call, such as `socket.broadcast(...)`, for its event loop."""
    handler_threads: int = min(32, (os.cpu_count() or 1) + 4)
    """Number of threads for `def` handlers. When all are busy, sockets wait in order."""

    hold_seconds: float = 5.0
    """The longest time that broadcasts wait for the `connect` of a socket; see docs/limits.md."""

    drain_seconds: float | None = None
    """Time to close all sockets at shutdown. None: see `drain_window_seconds`."""
    drain_on_signal: bool | None = None
    """True if SIGTERM closes the sockets first. None: see `drains_on_signal`."""

    @property
    def drain_window_seconds(self) -> float:
        """The setting, else the environment variable DJANGO_SOCKETS_DRAIN_SECONDS, else 10.

        Raises:
            ConfigurationError: the variable is not a number over 0.
        """
        if self.drain_seconds is not None:
            return self.drain_seconds
        text = os.environ.get(DRAIN_SECONDS_VARIABLE, "10")
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise ConfigurationError(f"{DRAIN_SECONDS_VARIABLE}={text!r}: use a number over 0")
        return seconds

    @property
    def drains_on_signal(self) -> bool:
        """The setting, else the environment variable DJANGO_SOCKETS_DRAIN_ON_SIGNAL, else True.

        The values "0", "false" and "no" of the variable mean False.
        """
        if self.drain_on_signal is not None:
            return self.drain_on_signal
        return os.environ.get(DRAIN_ON_SIGNAL_VARIABLE, "1").lower() not in ("0", "false", "no")

    def __post_init__(self) -> None:
        if self.drain_on_signal not in (None, True, False):
            raise ConfigurationError(
                f"setting drain_on_signal={self.drain_on_signal!r}: use True or False"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "drain_on_signal" or (value is None and field.default is None):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigurationError(f"setting {field.name}={value!r}: use a number over 0")


_SETTING_NAMES = frozenset(field.name for field in dataclasses.fields(Settings))


@dataclasses.dataclass(frozen=True)
class Config:
    """A validated configuration. Equal configurations share one hub for each event loop.

    Attributes:
        url: the broker.
        settings: the other settings.
        broker_factory: for tests: makes the broker of a hub instead of `open_broker`.
    """

    url: BrokerURL
    settings: Settings = Settings()
    broker_factory: Callable[[BrokerURL, Sink], Broker] | None = None

    def __hash__(self) -> int:
        return self._hash  # Cached: each broadcast looks up its hub, and there are many options.

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.url, self.settings, self.broker_factory))


Source: TypeAlias = str | BrokerURL | Sequence[Any] | Mapping[str, Any] | Config


def load_config(source: Source | None = None) -> Config:
    """Make a configuration from a URL, a list of URLs, or a dict.

    Args:
        source: None for the default (`default_config`). A list, or URLs separated by white space,
            are independent hosts. A dict holds `url` (one URL or a list) or `hosts`, any of the
            names in `Settings`, and `history`: a dict of channel prefix -> rule, such as
            `{"room:": {"messages": 100, "seconds": 300, "bytes": 65536}}`. `hosts` is a list of
            URLs or of dicts such as `{"address": URL, **driver_options}`. Instead of `address`, a
            dict may hold `host` and `port`, or `master_name` and `sentinels` (pairs of host and
            port) with `sentinel_kwargs`. With `cluster: True`, an `address` or `host` is the seed
            of a cluster. A `Config` is returned unchanged.

    Raises:
        ConfigurationError: the configuration is wrong. The message names the part.
    """
    try:
        if source is None:
            return default_config()
        if isinstance(source, (str, BrokerURL)):  # The most frequent case is first.
            return _of_url(source)
        if isinstance(source, Config):
            return source
        if isinstance(source, Mapping):
            return _from_dict(source)
        if isinstance(source, (list, tuple)):
            return Config(_together(source))
        error = ConfigurationError(
            f"a configuration is a URL, a list or a dict, not {type(source).__name__}: "
            'write "redis://localhost:6379"'
        )
    except ConfigurationError as exc:
        error = without_frames(exc)
    del source  # It may hold a password, and error reports show local variables.
    raise error


@functools.lru_cache(maxsize=128)
def _of_url(source: str | BrokerURL) -> Config:
    # Each connection calls this. With a shared object, the lookup of the hub is fastest.
    return Config(_host_url(source))


_overrides: list[Config] = []
_configured: list[tuple[object, Config]] = []
"""The last value of Django's setting, and its configuration."""


def default_config() -> Config:
    """Django's `DJANGO_SOCKETS_CONFIG`, else the variable `DJANGO_SOCKETS_URL`, else `memory://`."""
    return default_config_and_origin()[0]


def default_config_and_origin() -> tuple[Config, str]:
    """The default configuration and its origin.

    Returns:
        The configuration, and "override", "setting", "environment" or "default".

    Raises:
        ConfigurationError: the configuration is wrong.
    """
    if _overrides:
        return _overrides[-1], "override"
    configured = getattr(_django_settings(), DJANGO_SETTING, None)
    url = None
    try:
        if configured is not None:
            if not _configured or _configured[0][0] is not configured:
                _configured[:] = [(configured, load_config(configured))]
            return _configured[0][1], "setting"
        url = os.environ.get(ENVIRONMENT_VARIABLE)
        return load_config(url or DEFAULT_URL), "environment" if url else "default"
    except ConfigurationError as exc:
        error = without_frames(exc)
    del configured, url
    raise error


@contextlib.contextmanager
def override_default(source: Source) -> Iterator[Config]:
    """For tests: make `source` the default configuration of the process within a `with` block."""
    config = load_config(source)
    _overrides.append(config)
    try:
        yield config
    finally:
        _overrides.remove(config)


def check_hosts(hosts: object) -> None:
    """Check the option `hosts`.

    Raises:
        ConfigurationError: it is not a list. The message does not show the value, which may hold
            a password.
    """
    if not _is_list(hosts):
        raise ConfigurationError(
            "'hosts' is a list such as [{'address': 'redis://localhost:6379'}]"
        )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _from_dict(source: Mapping[str, Any]) -> Config:
    values = dict(source)
    hosts = values.pop("hosts", None)
    url = values.pop("url", None)
    history = values.pop("history", None)
    for name in values:
        if name not in _SETTING_NAMES:
            valid = ["history", "hosts", "url", *_SETTING_NAMES]
            raise ConfigurationError(f"unknown setting {name!r}; {suggest(name, valid)}")
    if (hosts is None) == (url is None):
        raise ConfigurationError("a configuration dict needs either 'url' or 'hosts'")
    if hosts is not None:
        check_hosts(hosts)
    if hosts is None:
        hosts = url if isinstance(url, (list, tuple)) else [url]
    broker_url = _together(hosts)
    if history is not None:
        broker_url = broker_url.with_history(HistoryRules.parse(history))
    return Config(broker_url, Settings(**values))


def _together(hosts: Sequence[Any]) -> BrokerURL:
    return BrokerURL.together([_host_url(host) for host in hosts])


@functools.lru_cache(maxsize=256)
def _parse(url: str) -> BrokerURL:
    """Parse a URL. Cached, because every socket loads its configuration."""
    return BrokerURL.parse(url)


def _host_url(host: object) -> BrokerURL:
    if isinstance(host, BrokerURL):
        return host
    if isinstance(host, str):
        return _parse(host)
    if not isinstance(host, Mapping):
        raise ConfigurationError(
            f"a host is a URL or a dict with 'address', not {type(host).__name__}"
        )
    options = dict(host)
    is_cluster = options.pop("cluster", False)
    url = _address_url(options)
    if is_cluster and "+" not in url.scheme:
        url = dataclasses.replace(url, scheme=f"{url.scheme}+cluster")
    return url


def _address_url(options: dict[str, Any]) -> BrokerURL:
    """The URL of a dict in `hosts`."""
    address = options.pop("address", None)
    if address is not None:
        return BrokerURL.parse(address, options) if options else _parse(address)
    if "master_name" in options and "sentinels" in options:
        sentinels = options.pop("sentinels")
        if not _is_list(sentinels) or not all(map(_is_list, sentinels)):
            raise ConfigurationError("'sentinels' is a list such as [('10.0.0.1', 26379)]")
        hosts = ",".join(_host_port(*sentinel) for sentinel in sentinels)
        service, number = options.pop("master_name"), options.pop("db", "")
        login = options.pop("sentinel_kwargs", None) or {}
        query = "&".join(
            f"sentinel_{name}={quote(str(value), safe='')}" for name, value in login.items()
        )
        path = f"{quote(str(service), safe='')}/{number}" if number != "" else quote(str(service))
        return BrokerURL.parse(f"redis+sentinel://{hosts}/{path}?{query}", options)
    if "host" in options:
        where = _host_port(options.pop("host"), options.pop("port", 6379))
        return BrokerURL.parse(f"redis://{where}", options)
    raise ConfigurationError(
        "a host dict needs 'address' (a URL), or 'host' and 'port', or 'master_name' and "
        "'sentinels'"
    )


def _host_port(host: object, port: object = "") -> str:
    name = f"[{host}]" if ":" in str(host) else str(host)
    return f"{name}:{port}" if port else name


def _django_settings() -> Any:
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


@dataclasses.dataclass(frozen=True)
class Site:
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
    settings = _django_settings()
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
    forced = getattr(_django_settings(), "FORCE_SCRIPT_NAME", None)
    prefix: str = forced or scope.get("root_path") or ""
    return prefix.rstrip("/")


def lazy_text(value: object) -> str | None:
    """The text of one of Django's lazy strings; None for other values."""
    functional = sys.modules.get("django.utils.functional")
    if functional is not None and isinstance(value, functional.Promise):
        return str(value)
    return None


Hygiene: TypeAlias = Callable[[], contextlib.AbstractContextManager[None]]
_hygiene: list[Hygiene] = []


@contextlib.contextmanager
def override_hygiene(hygiene: Hygiene) -> Iterator[None]:
    """For tests: use `hygiene` instead of `database_hygiene` within a `with` block."""
    _hygiene.append(hygiene)
    try:
        yield
    finally:
        _hygiene.remove(hygiene)


def hygiene_is_replaced() -> bool:
    """True within `override_hygiene`."""
    return bool(_hygiene)


def on_database_connection(receiver: Callable[..., None]) -> bool:
    """Connect `receiver` to Django's signal `connection_created`; False if Django is not in use.

    Args:
        receiver: a module-level function. It is called on the thread that has connected.
    """
    if _django_settings() is None:
        return False
    from django.db.backends.signals import connection_created

    connection_created.connect(receiver, dispatch_uid="django_sockets.connection_created")
    return True


@contextlib.contextmanager
def database_hygiene() -> Iterator[None]:
    """A context for a `def` handler on a worker thread, as Django has around a request.

    Connections that are broken or older than `CONN_MAX_AGE` are closed before and after.
    """
    if _hygiene:
        with _hygiene[-1]():
            yield
        return
    db = sys.modules.get("django.db")
    if (
        db is None or _django_settings() is None
    ):  # Its import alone does not mean that Django is configured.
        yield
        return
    db.close_old_connections()
    try:
        yield
    finally:
        db.close_old_connections()
