"""Settings of a small shop in a separate process. `SHOP_SETTINGS` (JSON) changes them."""

import json
import os

SECRET_KEY = "only for tests"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", "testserver"]
INSTALLED_APPS = ["django_sockets", "django.contrib.staticfiles", "shop"]
MIDDLEWARE = []
ROOT_URLCONF = "shop.urls"
ASGI_APPLICATION = "shop.asgi.application"
STATIC_URL = "static/"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

globals().update(json.loads(os.environ.get("SHOP_SETTINGS", "{}")))
