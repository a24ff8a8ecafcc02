"""A site with the live page, for server processes. LIVE_SITE_URL is its broker.

LIVE_SITE_FOLDER has its database, which `python -m support.live_site` makes. There are the users
"boss" (may do everything), "desk" (staff without permissions) and "guest" (not staff).
"""

import os
from pathlib import Path
from urllib.parse import parse_qs

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import include, path

import django
from django_sockets.sockets import BaseSocketServer
from django_sockets.utils import ProtocolTypeRouter, URLRouter

PASSWORD = "only for tests"
"""The password of all users."""
FOLDER = Path(os.environ.get("LIVE_SITE_FOLDER", "."))
AUTH = "django.contrib.auth"


def policy(get_response):
    """Middleware: the strictest policy of content that the admin itself allows."""

    def middleware(request):
        response = get_response(request)
        if request.path.startswith("/admin/"):
            response["Content-Security-Policy"] = "default-src 'self'; frame-ancestors 'none'"
        return response

    return middleware


class Chat(BaseSocketServer):
    """Its query names the user and the channels."""

    overflow = "drop_oldest"
    outbox_bytes = 64 * 1024

    async def connect(self):
        query = parse_qs(self.scope["query_string"].decode())
        self.tags = {"user": query["user"][0]}
        await self.async_subscribe(query["channel"])
        await self.async_send("ready")

    async def receive(self, data):
        await self.async_broadcast(data["channel"], data["data"])


class Orders(Chat):
    pass


def configure(**more):
    settings.configure(
        SECRET_KEY="only for tests",
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        ROOT_URLCONF=__name__,
        DJANGO_SOCKETS_CONFIG={"url": os.environ["LIVE_SITE_URL"], "drain_seconds": 0.5},
        INSTALLED_APPS=[
            "django_sockets",
            "django.contrib.admin",
            AUTH,
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.staticfiles",
        ],
        MIDDLEWARE=[
            f"{__name__}.policy",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            f"{AUTH}.middleware.AuthenticationMiddleware",
            f"{AUTH}.middleware.LoginRequiredMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        f"{AUTH}.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": FOLDER / "live.sqlite3",
                "OPTIONS": {"timeout": 20},
            }
        },
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        STATIC_URL="/static/",
        USE_TZ=True,
        DEBUG=True,  # It serves the static files.
        LOGGING={
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"console": {"class": "logging.StreamHandler"}},
            "loggers": {"django_sockets": {"handlers": ["console"], "level": "INFO"}},
        },
        **more,
    )
    django.setup()


def make_database():
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    User.objects.create_superuser("boss", password=PASSWORD)
    User.objects.create_user("desk", password=PASSWORD, is_staff=True)
    User.objects.create_user("guest", password=PASSWORD)


if "LIVE_SITE_URL" in os.environ:
    configure()

    from django.contrib import admin
    from django.contrib.auth import authenticate, login
    from django.contrib.auth.decorators import login_not_required
    from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler, StaticFilesHandler
    from django.core.wsgi import get_wsgi_application

    @login_not_required
    def front(request):
        return HttpResponse("<!doctype html><title>site</title><link rel=icon href=data:>")

    @login_not_required
    def enter(request):
        login(request, authenticate(request, username=request.GET["name"], password=PASSWORD))
        return HttpResponse("in")

    urlpatterns = [
        path("", front),
        path("enter/", enter),
        path("admin/sockets/", include("django_sockets.urls")),
        path("admin/", admin.site.urls),
    ]
    try:
        from django_sockets.observability import collect_metrics, metrics_view
    except ImportError:  # prometheus_client is not installed.
        pass
    else:
        collect_metrics()
        urlpatterns.append(path("metrics", metrics_view))

    application = ProtocolTypeRouter(
        {
            "http": ASGIStaticFilesHandler(get_asgi_application()),
            "websocket": URLRouter([path("chat/", Chat.as_asgi), path("orders/", Orders.as_asgi)]),
        }
    )
    wsgi_application = StaticFilesHandler(get_wsgi_application())

if __name__ == "__main__":
    make_database()
