"""The core works with Django configured, installed and not configured, or absent."""

from __future__ import annotations

import os
import subprocess
import sys

from django_sockets.optional_django import lazy_text

NEUTRAL = """
from django_sockets.optional_django import (
    database_hygiene, django_settings, django_site, on_database_connection, script_prefix,
)

scope = {"type": "websocket", "root_path": "/app/", "headers": []}
assert django_settings() is None
assert django_site(scope) is None
assert script_prefix(scope) == "/app"
assert on_database_connection(print) is False
with database_hygiene():
    pass
"""


def test_without_a_configured_django_every_function_has_a_neutral_result() -> None:
    # In a process of its own: other tests configure Django.
    environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    subprocess.run([sys.executable, "-c", NEUTRAL], env=environment, check=True, timeout=60)


def test_lazy_text_is_told_from_other_text() -> None:
    from django.utils.functional import lazystr

    assert lazy_text(lazystr("text")) == "text"
    assert lazy_text("text") is None
    assert lazy_text(7) is None
