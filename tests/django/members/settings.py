"""A project with its own user model, on a file of SQLite. MEMBERS_FOLDER names the folder."""

import os
from pathlib import Path

SECRET_KEY = "the key of now"
ALLOWED_HOSTS = ["testserver", "127.0.0.1"]
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "rest_framework",
    "rest_framework.authtoken",
    "members",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "members.urls"
AUTH_USER_MODEL = "members.Member"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ["MEMBERS_FOLDER"]) / "members.sqlite3",
        "OPTIONS": {"timeout": 20},
    }
}
SESSION_FILE_PATH = os.environ["MEMBERS_FOLDER"]
