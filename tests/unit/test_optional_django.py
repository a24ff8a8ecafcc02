"""The core works with Django configured, installed and not configured, or absent."""

from __future__ import annotations

from django_sockets.optional_django import (
    database_hygiene,
    django_settings,
    django_site,
    lazy_text,
    on_database_connection,
    script_prefix,
)


def test_without_a_configured_django_every_function_has_a_neutral_result() -> None:
    scope = {"type": "websocket", "root_path": "/app/", "headers": []}
    assert django_settings() is None
    assert django_site(scope) is None
    assert script_prefix(scope) == "/app"
    assert on_database_connection(print) is False
    with database_hygiene():
        pass


def test_lazy_text_is_told_from_other_text() -> None:
    from django.utils.functional import lazystr

    assert lazy_text(lazystr("text")) == "text"
    assert lazy_text("text") is None
    assert lazy_text(7) is None
