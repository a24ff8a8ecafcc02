"""Django's settings decide which origin belongs to the site. A refusal names these settings."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from django_sockets.connection import handshake
from django_sockets.connection.origin import origin_problem
from django_sockets.integration.checks import check_origins
from django_sockets.log import LogThrottle
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient

PROXY = ("HTTP_X_FORWARDED_PROTO", "https")


def problem(
    origin: str, scheme: str | None = "ws", host: str = "testserver", **headers: str
) -> str | None:
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": "/",
        "query_string": b"\xff",
        "headers": [(b"host", host.encode()), (b"origin", origin.encode())],
    }
    scope["headers"] += [(name.encode(), value.encode()) for name, value in headers.items()]
    if scheme is not None:
        scope["scheme"] = scheme
    return origin_problem(scope, ())


@pytest.mark.parametrize(
    ("scheme", "header", "accepted"),
    [
        ("ws", None, {"http"}),
        ("wss", None, {"https"}),
        (None, None, {"http", "https"}),  # daphne.
        ("ws", "https", {"https"}),
        (None, "https", {"https"}),
        (None, "http", {"http"}),
    ],
)
def test_the_scheme_is_what_the_server_or_the_proxy_says(
    scheme: str | None, header: str | None, accepted: set[str], settings_of: Any
) -> None:
    settings_of(SECURE_PROXY_SSL_HEADER=PROXY, ALLOWED_HOSTS=["testserver"])
    headers = {} if header is None else {"x-forwarded-proto": header}
    for web in ("http", "https"):
        said = problem(f"{web}://testserver", scheme, **headers)
        assert (said is None) is (web in accepted), said
    assert problem("https://evil.example", scheme, **headers) is not None


def test_behind_a_proxy_that_ends_tls_the_refusal_names_the_settings(settings_of: Any) -> None:
    settings_of(ALLOWED_HOSTS=["testserver"])
    said = problem("https://testserver")
    assert said is not None
    assert "SECURE_PROXY_SSL_HEADER" in said
    assert "CSRF_TRUSTED_ORIGINS" in said
    settings_of(CSRF_TRUSTED_ORIGINS=["https://testserver"])
    assert problem("https://testserver") is None
    settings_of(CSRF_TRUSTED_ORIGINS=[], SECURE_PROXY_SSL_HEADER=PROXY)
    assert problem("https://testserver", **{"x-forwarded-proto": "https"}) is None


def test_a_host_that_is_not_allowed_is_named(settings_of: Any) -> None:
    settings_of(ALLOWED_HOSTS=["testserver"])
    said = problem("http://evil.example", host="evil.example")
    assert said is not None
    assert "'evil.example' is not in ALLOWED_HOSTS" in said


def test_an_app_that_is_trusted_by_the_settings(settings_of: Any) -> None:
    settings_of(CSRF_TRUSTED_ORIGINS=["capacitor://localhost"])
    assert problem("capacitor://localhost") is None
    assert problem("capacitor://localhos") is not None


def test_a_text_in_place_of_the_trusted_origins_opens_nothing(settings_of: Any) -> None:
    settings_of(CSRF_TRUSTED_ORIGINS="https://*.partner.example", ALLOWED_HOSTS=["testserver"])
    for origin in ("https://evil.test", "https://a.partner.example", "*", "h"):
        assert problem(origin) is not None
    assert problem("http://testserver") is None


async def test_where_django_is_configured_allowed_hosts_of_a_class_does_not_count(
    settings_of: Any,
) -> None:
    settings_of(ALLOWED_HOSTS=["chat.example.com"])

    class Chat(BaseSocketServer):
        config = "memory://"
        allowed_hosts = ("evil.example",)

    for name, accepted in (("chat.example.com", True), ("evil.example", False)):
        client = SocketClient(Chat.as_asgi, headers={"host": name, "origin": f"http://{name}"})
        if accepted:
            async with client:
                pass
        else:
            with pytest.raises(HandshakeRefused):
                await client.connect()


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("https://a.example/", "W016"),
        ("a.example", "W016"),
        ("wss://a.example", "W016"),
        ("null", "W006"),
        ("*", "W006"),
        ("capacitor://localhost", None),
        ("https://*.a.example", None),
    ],
)
@pytest.mark.parametrize("trusted", [False, True], ids=["class", "settings"])
def test_the_system_check_names_entries_that_match_nothing(
    entry: str, found: str | None, trusted: bool, settings_of: Any
) -> None:
    settings_of(ASGI_APPLICATION=None)
    if trusted:
        settings_of(CSRF_TRUSTED_ORIGINS=[entry])
        cls, name = None, "CSRF_TRUSTED_ORIGINS"
    else:
        cls = type("Checked", (BaseSocketServer,), {"allowed_origins": [entry]})
        name = f"{cls.__module__}.Checked"
    said = [one for one in check_origins() if one.msg.startswith(name) and repr(entry) in one.msg]
    expected = [] if found is None or (trusted and found == "W006") else [f"django_sockets.{found}"]
    assert [one.id for one in said] == expected
    del cls


async def test_refused_pages_are_logged_once_per_interval(
    settings_of: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttle = LogThrottle(logging.getLogger("django_sockets"), 60)
    monkeypatch.setattr(handshake, "_throttle", throttle)
    for number in range(20):
        headers = {"origin": f"https://{number}.example"}
        with pytest.raises(HandshakeRefused):
            await SocketClient(BaseSocketServer.as_asgi, headers=headers).connect()
    assert len([line for line in caplog.messages if "refused a websocket" in line]) == 1
