"""Settings of the demo. It has no database and keeps nothing."""

import os

from django.core.management.utils import get_random_secret_key

SECRET_KEY = get_random_secret_key()  # Each run has a new key: the demo stores nothing signed.
DEBUG = False
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]

INSTALLED_APPS = ["django.contrib.staticfiles", "chat"]
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

# The broker that carries the messages: the only setting of django_sockets here.
DJANGO_SOCKETS_CONFIG = os.environ.get("DJANGO_SOCKETS_URL", "memory://")
