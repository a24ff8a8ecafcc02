"""`manage.py runserver` with websockets: Django's command, on uvicorn if ASGI_APPLICATION is set.

Reloading, checks, the address and static files work as in Django; only the server is different.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core.servers.basehttp import WSGIServer

from ...errors import pip_command
from ...integration.asgi_application import asgi_application, asgi_application_path

if TYPE_CHECKING or not apps.is_installed("django.contrib.staticfiles"):
    from django.core.management.commands.runserver import Command as DjangoCommand
else:
    from django.contrib.staticfiles.management.commands.runserver import Command as DjangoCommand

MISSING = (
    f"No websockets: {{}} is not installed. Run {pip_command('runserver')}. "
    "Until then this is Django's own server."
)


class Command(DjangoCommand):
    help = "Starts a web server for development, with websockets and static files."

    serves_asgi = False
    addr: str  # Django's `handle` sets this attribute and the next one.
    _raw_ipv6: bool

    def inner_run(self, *args: Any, **options: Any) -> None:
        # With the reloader only `inner_run` runs in the process that serves.
        self.serves_asgi = self._can_serve_asgi()
        if self.serves_asgi:
            from ...integration.devserver import UvicornServer

            self.server_cls = UvicornServer  # type: ignore[assignment]
        else:
            self.server_cls = WSGIServer
        super().inner_run(*args, **options)

    def _can_serve_asgi(self) -> bool:
        if asgi_application_path() is None:
            return False
        for package in ("uvicorn", "websockets"):
            if importlib.util.find_spec(package) is None:
                self.stderr.write(self.style.WARNING(MISSING.format(package)))
                return False
        return True

    def get_handler(self, *args: Any, **options: Any) -> Any:
        if not self.serves_asgi:
            return super().get_handler(*args, **options)
        application = asgi_application()
        if options.get("use_static_handler") and (
            settings.DEBUG or options.get("insecure_serving")
        ):
            from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

            # It handles HTTP only; websockets and the lifespan pass through.
            return ASGIStaticFilesHandler(application)
        return application

    def on_bind(self, server_port: int) -> None:
        super().on_bind(server_port)
        if self.serves_asgi:
            host = f"[{self.addr}]" if self._raw_ipv6 else self.addr
            host = "0.0.0.0" if host == "0" else host  # noqa: S104
            application = asgi_application_path()
            # Django 6 calls every server "WSGI" in its banner, so that this line is needed.
            self.stdout.write(
                f"uvicorn serves {application} as ASGI; websockets go to ws://{host}:{server_port}/"
            )
