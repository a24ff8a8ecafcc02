"""Settings of the demo. It has no database."""

import os

from chat.messages import KEPT_MESSAGES, KEPT_SECONDS, ROOM
from django.core.management.utils import get_random_secret_key

SECRET_KEY = get_random_secret_key()  # Each run has a new key: the demo stores nothing signed.
DEBUG = False
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]

INSTALLED_APPS = ["django_sockets", "django.contrib.staticfiles", "chat"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
ROOT_URLCONF = "project.urls"
STATIC_URL = "static/"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

# The broker that carries the messages, and keeps the last ones for tabs that were away.
DJANGO_SOCKETS_CONFIG = {
    "url": os.environ.get("DJANGO_SOCKETS_URL", "memory://"),
    "history": {ROOM: {"messages": KEPT_MESSAGES, "seconds": KEPT_SECONDS}},
}
