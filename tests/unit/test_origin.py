"""The pages that may open a websocket without Django, and the log lines about the others."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from django_sockets.connection import origin as origins
from django_sockets.connection.origin import entry_problem, origin_problem
from django_sockets.errors import ConfigurationError
from django_sockets.log import LogThrottle
from django_sockets.middleware import OriginMiddleware
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing.client import HandshakeRefused, SocketClient


@pytest.fixture(autouse=True)
def without_django(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have configured it."""
    monkeypatch.setattr(origins, "django_site", lambda scope: None)


def problem(
    origin: bytes | str,
    host: bytes | str = b"localhost",
    allowed: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    scheme: str | None = "ws",
) -> str | None:
    header, name = (x.encode("latin-1") if isinstance(x, str) else x for x in (origin, host))
    scope: dict[str, Any] = {"headers": [(b"host", name), (b"origin", header), (b"cookie", b"a=1")]}
    if scheme is not None:
        scope["scheme"] = scheme
    return origin_problem(scope, allowed, hosts)


NO_ORIGINS = {
    "tab in the scheme": b"ht\ttp://localhost",
    "tab in the host": b"http://local\thost",
    "tab behind it": b"http://localhost\t",
    "line feed": b"http://local\nhost",
    "line feed behind it": b"http://localhost\n",
    "carriage return": b"http://localhost\r",
    "NUL": b"http://localhost\x00",
    "control": b"\x01http://localhost",
    "space before it": b" http://localhost",
    "space behind it": b"http://localhost ",
    "space inside": b"http:// localhost",
    "not ASCII": "http://localhost\u0430".encode(),
    "latin-1": b"http://localhost\xad",
    "port 0": b"http://localhost:0",
    "port 080": b"http://localhost:080",
    "port over all": b"http://localhost:65616",
    "port of other digits": "http://localhost:\u0668\u0660".encode(),
    "no port behind the colon": b"http://localhost:",
    "negative port": b"http://localhost:-80",
    "user": b"http://a@localhost",
    "empty user": b"http://@localhost",
    "user and password": b"http://a:b@localhost",
    "slash": b"http://localhost/",
    "path": b"http://localhost/a",
    "query": b"http://localhost?a",
    "empty query": b"http://localhost?",
    "fragment": b"http://localhost#",
    "backslash": b"http:\\\\localhost",
    "backslash behind it": b"http://localhost\\",
    "three slashes": b"http:///localhost",
    "one slash": b"http:/localhost",
    "no scheme": b"//localhost",
    "host alone": b"localhost",
    "websocket": b"ws://localhost",
    "trailing dot": b"http://localhost.",
    "percent": b"http://%6cocalhost",
    "brackets around a name": b"http://[localhost]",
    "half a bracket": b"http://[::1",
    "zone": b"http://[::1%25lo]",
    "comma": b"http://localhost, http://localhost",
    "list": b"http://localhost http://localhost",
    "null": b"null",
    "null in capitals": b"NULL",
    "empty": b"",
}


@pytest.mark.parametrize("name", NO_ORIGINS)
def test_a_value_that_is_not_exactly_an_origin_is_refused(name: str) -> None:
    assert problem(b"http://localhost") is None
    said = problem(NO_ORIGINS[name])
    assert said is not None
    assert said.isprintable()


@pytest.mark.parametrize(
    ("origin", "host", "accepted"),
    [
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://[::1]", "[::1]:80", True),
        ("http://[::1]", "[::2]", False),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://127.0.0.1:8000", "127.0.0.1", False),
        ("http://LOCALHOST:80", "localhost", True),
        ("http://localhost.", "localhost.", True),
        ("http://xn--bcher-kva.localhost", "xn--bcher-kva.localhost", True),
    ],
)
def test_the_own_origin(origin: str, host: str, accepted: bool) -> None:
    assert (problem(origin, host) is None) is accepted


# The names of the server, where no ALLOWED_HOSTS says them

HOSTS = [
    ("localhost", (), True),
    ("LOCALHOST:8000", (), True),
    ("app.localhost", (), True),
    ("testserver", (), True),
    ("web:8000", (), True),
    ("127.0.0.1", (), True),
    ("192.168.1.20:8000", (), True),
    ("[::1]:8000", (), True),
    ("[2001:db8::1]", (), True),
    ("[::ffff:1.2.3.4]", (), True),
    ("evil.example", (), False),
    ("evil.example:8000", (), False),
    ("evil.example.", (), False),
    ("127.0.0.1.evil.example", (), False),
    ("localhost.evil.example", (), False),
    ("127.1", (), False),
    ("1.2.3.4.5", (), False),
    ("chat.example.com", ("chat.example.com",), True),
    ("CHAT.example.com:8443", ("chat.Example.com",), True),
    ("chat.example.com.", ("chat.example.com",), True),
    ("a.chat.example.com", ("chat.example.com",), False),
    ("a.chat.example.com", (".example.com",), True),
    ("example.com", (".example.com",), True),
    ("evilexample.com", (".example.com",), False),
    ("evil.example", ("chat.example.com",), False),
    ("localhost", ("chat.example.com",), False),
    ("localhost", ("chat.example.com", "localhost"), True),
    ("evil.example", ("*",), True),
    ("a@localhost", (), False),
    ("localhost/a", (), False),
    ("localhost:0", (), False),
    ("", (), False),
]


@pytest.mark.parametrize(("host", "hosts", "accepted"), HOSTS)
def test_a_name_that_a_foreign_page_can_have_is_not_ours_unless_listed(
    host: str, hosts: tuple[str, ...], accepted: bool
) -> None:
    said = problem(f"http://{host}", host, hosts=hosts)
    assert (said is None) is accepted
    if host == "evil.example":
        assert said is None or "allowed_hosts" in said


def test_two_host_headers_are_none() -> None:
    hosts = [(b"host", b"localhost"), (b"host", b"evil.example")]
    for pair in (hosts, hosts[::-1], []):
        scope = {"scheme": "ws", "headers": [*pair, (b"origin", b"http://localhost")]}
        assert origin_problem(scope, ()) is not None


async def test_the_class_names_its_hosts() -> None:
    class Chat(BaseSocketServer):
        config = "memory://hosts"
        allowed_hosts = ("chat.example.com",)

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    wrapped = OriginMiddleware(plain, allowed_hosts=["chat.example.com"])
    for app in (Chat.as_asgi, wrapped):
        for name, accepted in (("chat.example.com", True), ("evil.example", False)):
            client = SocketClient(app, headers={"host": name, "origin": f"http://{name}"})
            if accepted:
                async with client:
                    pass
            else:
                with pytest.raises(HandshakeRefused):
                    await client.connect()


@pytest.mark.parametrize("host", ["https://a.example", "a.example:80", "a.example/", " a", "", 7])
def test_a_host_that_no_request_has_is_a_mistake(host: Any) -> None:
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        type("Chat", (BaseSocketServer,), {"allowed_hosts": [host]})


# The scheme, which not every server tells


@pytest.mark.parametrize(
    ("scheme", "accepted"),
    [
        ("ws", {"http"}),
        ("wss", {"https"}),
        (None, {"http", "https"}),
        ("", {"http", "https"}),
    ],
)
def test_a_scheme_that_is_not_told_is_either(scheme: str | None, accepted: set[str]) -> None:
    for web in ("http", "https"):
        said = problem(f"{web}://web", "web", scheme=scheme)
        assert (said is None) is (web in accepted)
    assert problem("https://other", "web", scheme=scheme) is not None


def test_behind_a_proxy_that_ends_tls_the_refusal_says_what_to_do() -> None:
    said = problem("https://web", "web")
    assert said is not None
    assert "proxy" in said
    assert "allowed_origins" in said
    other = problem("https://evil.example", "web")
    assert other is not None
    assert "proxy" not in other


# Origins that are named

APPS = [
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "http://tauri.localhost",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "moz-extension://2b4a1e0c-0a0e-4a3c-9d3e-0123456789ab",
    "vscode-webview://abc",
    "app://.",
    "file://",
    "null",
]


@pytest.mark.parametrize("app", APPS)
def test_the_origin_of_an_app_is_admitted_as_it_is_written(app: str) -> None:
    assert entry_problem(app) is None
    assert problem(app) is not None
    assert problem(app, allowed=("https://a.example", app)) is None
    for other in (app + "x", "x" + app, app.upper(), app + "/"):
        if other == "HTTP://TAURI.LOCALHOST":
            continue  # Of the web, where capitals are the same.
        assert problem(other, allowed=(app,)) is not None


ENTRIES = {
    "https://a.example/": "https://a.example",
    "https://a.example/chat": "https://a.example",
    "https://a.example?x": "https://a.example",
    "https://a.example#x": "https://a.example",
    "https://user@a.example": "https://a.example",
    "a.example": "https://a.example",
    "*.a.example": "https://*.a.example",
    "localhost:8000": "https://localhost:8000",
    "ws://a.example": "http://a.example",
    "wss://a.example:8443": "https://a.example:8443",
    "wss://*.a.example": "https://*.a.example",
    " https://a.example": "https://a.example",
    "https://a.example\n": "https://a.example",
    "https://a b.example": None,
    "https://b\u00fccher.example": "https://xn--bcher-kva.example",
    "https://a.example:0": None,
    "https://a.example:99999": None,
    "https://a.example:*": None,
    "https://app-*.example": None,
    "https://": None,
    "": None,
    "Capacitor://localhost": "capacitor://localhost",
    "chrome-extension://abc/": "chrome-extension://abc",
    "chrome-extension://*": None,
    "app://\U0001f600": None,
    b"https://a.example": None,
    7: None,
    None: None,
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_matches_nothing_is_named_with_the_right_one(
    entry: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origins, "_throttle", LogThrottle(logging.getLogger("django_sockets"), 10))
    right = "https://right.example"
    type("Chat", (BaseSocketServer,), {"allowed_origins": [right, entry]})
    (line,) = caplog.messages
    assert line.startswith("Chat.allowed_origins: ")
    assert line.isprintable()
    shown = entry.decode() if isinstance(entry, bytes) else str(entry)
    assert shown.strip() in line or not shown.isascii()
    better = ENTRIES[entry]
    if better is not None:
        assert f"write {better!r}" in line
        assert entry_problem(better) is None
    assert problem(right, allowed=(right,)) is None  # The others are not affected.


@pytest.mark.parametrize(
    "entry",
    ["*", "https://a.example", "http://a.example:80", "https://*.a.example:8443", "https://[::1]"],
)
def test_an_entry_that_can_match_is_left_alone(
    entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    type("Chat", (BaseSocketServer,), {"allowed_origins": [entry]})
    assert caplog.messages == []
