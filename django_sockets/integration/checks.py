"""System checks of `manage.py check`. docs/checks.md has a section for each.

Two of them use the network: `check_network`, which runs when its tag is named, and
`check_layers_reachable`, which runs with `--deploy`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler

from ..check import SOURCES, check, configuration
from ..conf import DJANGO_SETTING, ENVIRONMENT_VARIABLE
from ..connection.origin import entry_problem
from ..errors import ConfigurationError
from ..middleware.base import AppMissing
from ..registry import open_broker
from ..servers.installed import OLDEST, PROTOCOL, installed_servers, old_uvicorn
from ..sockets import BaseSocketServer
from .asgi_application import asgi_application, asgi_application_path
from .layer_checks import check_channel_layers, check_channel_layers_reachable
from .routing import ProtocolTypeRouter, layers
from .server_sent_events.check import check_events_views
from .wrapped_send import of_project

__all__ = ["NETWORK_TAG", "TAG", "register_checks"]

TAG = "django_sockets"
NETWORK_TAG = "django_sockets_network"
DOCS = "docs/checks.md"
SOURCE = "the checkout or source distribution of django_sockets"
"""The place of the docs: a wheel does not contain them."""


def register_checks() -> None:
    """Register the checks with Django."""
    checks = (check_configuration, check_application, check_origins, check_apps, check_old_server)
    for function in checks:
        register(function, TAG)
    register(check_layers, TAG)
    register(check_events, TAG)
    register(check_proxy, TAG, deploy=True)
    register(check_frames, TAG, deploy=True)
    register(check_layers_reachable, TAG, deploy=True)
    register(check_network, NETWORK_TAG, deploy=True)


def check_configuration(**_: Any) -> list[CheckMessage]:
    """E001: the broker's configuration is wrong. W002: the broker serves one process only."""
    try:
        config, source = configuration(())
        open_broker(config.url)
    except ConfigurationError as exc:
        hint = f"Look at {DJANGO_SETTING}, or at the environment variable {ENVIRONMENT_VARIABLE}."
        return [_message(Error, "E001", str(exc), hint)]
    why = _other_processes()
    if source == "override" or config.url.scheme != "memory" or why is None:
        return []
    problem = f"The broker is {config.url} ({SOURCES[source]}), but {why}."
    hint = (
        "Other processes do not receive the broadcasts of this one: "
        f'set {DJANGO_SETTING} = "redis://..." for all of them.'
    )
    return [_message(Warning, "W002", problem, hint)]


def _other_processes() -> str | None:
    """A reason to expect more than one process, or None."""
    workers = os.environ.get("WEB_CONCURRENCY", "")
    if workers.isdecimal() and int(workers) > 1:
        return f"WEB_CONCURRENCY={workers} asks for several worker processes"
    # Django's test runner also turns DEBUG off; the outbox exists only in tests.
    in_test = hasattr(sys.modules.get("django.core.mail"), "outbox")
    if not settings.DEBUG and not in_test:
        return "DEBUG is off, so this looks like production"
    return None


def check_layers(**_: Any) -> list[CheckMessage]:
    """E021, W022: see `layer_checks.check_channel_layers`."""
    return check_channel_layers(_message, _other_processes())


def check_events(**_: Any) -> list[CheckMessage]:
    """W024: see `server_sent_events.check.check_events_views`."""
    return check_events_views(_message)


def check_layers_reachable(**_: Any) -> list[CheckMessage]:
    """W023: see `layer_checks.check_channel_layers_reachable`."""
    return check_channel_layers_reachable(_message)


def check_application(**_: Any) -> list[CheckMessage]:
    """Check ASGI_APPLICATION.

    E003: it cannot be imported. W004: it is not set. W005: it does not route websockets. E011: it,
    or an entry of its ProtocolTypeRouter, is not an ASGI application. E012: an app that it needs is
    missing.
    """
    path = asgi_application_path()
    if path is None:
        hint = 'Set ASGI_APPLICATION = "mysite.asgi.application".'
        problem = "ASGI_APPLICATION is not set: runserver serves no websockets."
        return [_message(Warning, "W004", problem, hint)]
    try:
        application = asgi_application()
    except ImproperlyConfigured as exc:
        if isinstance(exc.__cause__, AppMissing):
            names = ", ".join(repr(name) for name in exc.__cause__.apps)
            hint = f"Add {names} to INSTALLED_APPS, and run `manage.py migrate`."
            return [_message(Error, "E012", f"{exc.__cause__}.", hint)]
        hint = "Its value is the dotted path of the application in your asgi.py."
        return [_message(Error, "E003", f"{exc}.", hint)]
    for where, part in _parts(path, application):
        problem, hint = _no_asgi(part)
        if problem:
            return [_message(Error, "E011", f"{where} is {problem}: it answers no request.", hint)]
    if isinstance(application, ProtocolTypeRouter):
        routed = "websocket" in application.application_mapping
    else:
        # Another application may do the routing itself.
        routed = not isinstance(application, ASGIHandler)
    if routed:
        return []
    problem = f"{path} does not route websockets: all are refused."
    hint = 'Make it ProtocolTypeRouter({"http": ..., "websocket": URLRouter([...])}).'
    return [_message(Warning, "W005", problem, hint)]


def _parts(path: str, application: Any) -> Iterator[tuple[str, Any]]:
    """The application and the entries of its router, with their names."""
    yield path, application
    if isinstance(application, ProtocolTypeRouter):
        for protocol, entry in application.application_mapping.items():
            yield f"The entry {protocol!r} of {path}", entry


def _no_asgi(application: Any) -> tuple[str, str]:
    """Why an object is not an ASGI application, and a hint; two empty strings if it may be one."""
    if isinstance(application, type):
        if issubclass(application, BaseSocketServer):
            name = application.__name__
            return f"the class {name}", f"Write {name}.as_asgi()."
        return f"the class {application.__name__}", "Name an instance of it."
    if not callable(application):
        kind = type(application).__name__
        return f"a {kind} and no application", "Name the application in your asgi.py."
    if any(_is_wsgi(layer) for layer in layers(application)):
        hint = "Use get_asgi_application() of django.core.asgi, in asgi.py and not in wsgi.py."
        return "a WSGI application", hint
    return "", ""


def _is_wsgi(application: Any) -> bool:
    """Whether an application takes `environ` and `start_response`, not ASGI's three arguments."""
    if isinstance(application, WSGIHandler):
        return True
    try:
        parameters = inspect.signature(application).parameters.values()
    except (TypeError, ValueError):
        return False
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return False
    positional = [
        one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    return len(positional) == 2 and all(one.default is one.empty for one in positional)


def check_origins(**_: Any) -> list[CheckMessage]:
    """W006: pages of any site may open a class's websockets. W016: an entry matches no origin."""
    if asgi_application_path() is not None:
        # This imports the socket classes: the order of checks is not fixed. E003 reports errors.
        with contextlib.suppress(ImproperlyConfigured):
            asgi_application()
    found = []
    hint = "Name the sites that may, such as https://app.example.com."
    lists = {"CSRF_TRUSTED_ORIGINS": settings.CSRF_TRUSTED_ORIGINS}
    for cls in _socket_classes(BaseSocketServer):
        name = f"{cls.__module__}.{cls.__qualname__}"
        origins = cls.allowed_origins
        if hasattr(origins, "__get__"):
            continue  # It is a property: each socket has a value of its own.
        lists[f"{name}.allowed_origins"] = origins
        for entry, whose in (
            ("*", "any page on the web"),
            ("null", "a sandboxed frame of any page"),
        ):
            if entry in origins:
                problem = (
                    f"{name} has {entry!r} in allowed_origins: {whose} may connect, with the "
                    "cookies of the user who looks at it."
                )
                found.append(_message(Warning, "W006", problem, hint))
    hint = "An origin is a scheme and a host, and nothing after them: https://app.example.com."
    for name, entries in lists.items():
        if isinstance(entries, str):
            entries = [entries]  # CSRF_TRUSTED_ORIGINS; Django's own check reports the type.
        problems = filter(None, map(entry_problem, entries))
        found += [_message(Warning, "W016", f"{name}: {problem}.", hint) for problem in problems]
    return found


def _socket_classes(base: type[BaseSocketServer]) -> Iterator[type[BaseSocketServer]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _socket_classes(cls)


def check_apps(**_: Any) -> list[CheckMessage]:
    """W007: `runserver` is the command of another app, because that app is listed first."""
    names = [config.name for config in apps.get_app_configs()]
    before = names[: names.index("django_sockets")] if "django_sockets" in names else []
    hint = "Move 'django_sockets' before it in INSTALLED_APPS"
    found = []
    for name in ("daphne", "django.contrib.staticfiles"):
        if name not in before:
            continue
        if name == "daphne":
            problem, more = "runserver is that of daphne", ", or silence this to keep daphne's."
        elif "daphne" in names:
            continue  # daphne has a check of its own for this order.
        else:
            problem, more = "runserver is that of django.contrib.staticfiles: no websockets", "."
        found.append(_message(Warning, "W007", f"{problem}, which is listed first.", hint + more))
    return found


def check_proxy(**_: Any) -> list[CheckMessage]:
    """I008: behind a proxy that ends TLS, the site would not recognize its own origin."""
    if not (settings.SECURE_SSL_REDIRECT or settings.SESSION_COOKIE_SECURE):
        return []
    if settings.SECURE_PROXY_SSL_HEADER or settings.CSRF_TRUSTED_ORIGINS:
        return []
    problem = (
        "The site is meant for https, and neither SECURE_PROXY_SSL_HEADER nor "
        "CSRF_TRUSTED_ORIGINS is set."
    )
    hint = (
        "Behind a proxy that ends TLS, every browser's websocket would be refused: its origin is "
        "https, the request looks like http. Set one of them, or let the server trust the proxy."
    )
    return [_message(Info, "I008", problem, hint)]


def check_old_server(**_: Any) -> list[CheckMessage]:
    """W017: the installed uvicorn does not bound the memory of a client that stops reading."""
    version = old_uvicorn()
    if version is None:
        return []
    problem = (
        f"uvicorn {version} is installed: in its protocol on websockets (--ws websockets-sansio), "
        "the memory for a client that stops reading has no bound."
    )
    return [_message(Warning, "W017", problem, f"Upgrade uvicorn to {OLDEST} or later.")]


def check_frames(**_: Any) -> list[CheckMessage]:
    """I018: no installed server offers prepared frames. I019: middleware prevents their use."""
    found = []
    servers = installed_servers()
    if servers and not any(server.offers_frames for server in servers):
        reasons = "; ".join(server.advice for server in servers)
        problem = f"No installed server offers prepared frames: {reasons}."
        hint = f"uvicorn {OLDEST} or later offers them with --ws {PROTOCOL}."
        found.append(_message(Info, "I018", problem, hint))
    hint = "Put it around the application for HTTP only, if websockets do not need it."
    for name in asyncio.run(of_project()):
        problem = f"{name} replaces `send`: websockets behind it get no prepared frames."
        found.append(_message(Info, "I019", problem, hint))
    return found


def check_network(**_: Any) -> list[CheckMessage]:
    """E009: the broker is not usable. W010: the broker is usable, with a warning."""
    if not _asked_for_by_name():
        return []
    try:
        findings = asyncio.run(check(*configuration(())))
    except ConfigurationError:
        return []  # `check_configuration` reports it as E001.
    if findings.problem is not None:
        hint = "`manage.py sockets check` says more."
        return [_message(Error, "E009", f"The broker is not usable: {findings.problem}", hint)]
    hint = f"It is about {findings.broker}."
    return [_message(Warning, "W010", warning, hint) for warning in findings.warnings]


def _asked_for_by_name() -> bool:
    """Whether the command line names the tag; Django does not pass the tags to a check.

    `check --deploy` alone also runs where no broker exists, such as in a build.
    """
    return any(argument.rpartition("=")[2] == NETWORK_TAG for argument in sys.argv)


def _message(kind: Callable[..., CheckMessage], number: str, text: str, hint: str) -> CheckMessage:
    where = f"{DOCS}#{TAG}{number.lower()}"
    return kind(text, hint=f"{hint} See {where} in {SOURCE}.", id=f"{TAG}.{number}")
