"""Settings of a Channels project. It has no database."""

import os

from django.core.management.utils import get_random_secret_key

SECRET_KEY = get_random_secret_key()  # Each run has a new key: nothing is signed for later.
DEBUG = True
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]

# "django_sockets" brings a `runserver` with websockets; "daphne" would do as well.
INSTALLED_APPS = ["django_sockets", "django.contrib.staticfiles", "channels", "rooms"]
MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware"]
ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"
STATIC_URL = "static/"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "django_sockets.integration.channel_layer.ChannelLayer",
        "CONFIG": {
            "url": os.environ.get("DJANGO_SOCKETS_URL", "memory://"),
            "gap_events": True,
        },
    }
}
