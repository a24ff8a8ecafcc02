import os

SECRET_KEY = "for these tests"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["django.contrib.staticfiles", "notes"]
STATIC_URL = "/static/"
ROOT_URLCONF = "notes.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MEMORY = "TESTKIT_FILE" not in os.environ
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "notes.sqlite3",
        "TEST": {} if MEMORY else {"NAME": os.environ["TESTKIT_FILE"]},
    }
}
