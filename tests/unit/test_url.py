"""Errors name the wrong part of a URL and never repeat a password."""

from __future__ import annotations

import re
import sys

import pytest

from django_sockets import ConfigurationError, open_broker
from django_sockets.url import Address, BrokerOptions, BrokerURL

VALID = {
    "redis://localhost": ("redis", ["localhost"], "", None, None),
    "redis://localhost:6380/2": ("redis", ["localhost:6380"], "2", None, None),
    "  REDISS://Cache.example:6379 ": ("rediss", ["Cache.example:6379"], "", None, None),
    "valkey://h": ("redis", ["h"], "", None, None),
    "valkeys://h": ("rediss", ["h"], "", None, None),
    "valkey+unix:///run/v.sock": ("redis+unix", [], "run/v.sock", None, None),
    "valkey+sentinel://a,b:1/main/0": ("redis+sentinel", ["a", "b:1"], "main/0", None, None),
    "redis://[::1]:7000,[fe80::2]": ("redis", ["[::1]:7000", "[fe80::2]"], "", None, None),
    "redis://:pw@h": ("redis", ["h"], "", None, "pw"),
    "redis://user:p%40w%2F%3A@h/0": ("redis", ["h"], "0", "user", "p@w/:"),
    "redis://user@h": ("redis", ["h"], "", "user", None),
    "redis://user:a@b:c#d@h:1": ("redis", ["h:1"], "", "user", "a@b:c#d"),
    "redis+unix://:pw@/tmp/a%20b@c.sock": ("redis+unix", [], "tmp/a b@c.sock", None, "pw"),
    "redis+unix:///tmp/a@b.sock": ("redis+unix", [], "tmp/a@b.sock", None, None),
    "memory://": ("memory", [], "", None, None),
    "memory://bus": ("memory", ["bus"], "", None, None),
}


@pytest.mark.parametrize("text", VALID)
def test_a_url_is_taken_apart(text: str) -> None:
    url = BrokerURL.parse(text)
    scheme, hosts, path, username, password = VALID[text]
    assert url.scheme == scheme
    assert [str(address) for address in url.addresses] == hosts
    assert (url.path, url.username, url.password) == (path, username, password)


def test_addresses_and_options_are_read() -> None:
    url = BrokerURL.parse(
        "redis://h:1?prefix=shop&dead_peer_seconds=2.5&max_payload_bytes=1024&tls_verify=none"
    )
    assert url.addresses == (Address("h", 1),)
    assert url.options == BrokerOptions(
        prefix="shop", dead_peer_seconds=2.5, max_payload_bytes=1024
    )
    assert url.check_extra({"tls_verify": "help"}) == {"tls_verify": "none"}


def test_spellings_of_the_same_broker_are_equal() -> None:
    one = BrokerURL.parse("valkey://h?dead_peer_seconds=2&prefix=x")
    other = BrokerURL.parse("redis://h?prefix=x&dead_peer_seconds=2.0")
    assert one == other
    assert hash(one) == hash(other)
    assert one != BrokerURL.parse("redis://h?prefix=y&dead_peer_seconds=2")


BAD = {
    "": r"broker URL '' has no scheme: write 'redis://host:6379' or 'memory://'",
    "localhost:6379": r"'localhost:6379' has no scheme",
    "redis:/h": r"'redis:/h' has no scheme",
    "6redis://h": r"has no scheme",
    "redis://h:99999": r"the port of host 'h' .*: use a number from 1 to 65535",
    "redis://h:0": r"the port of host 'h'",
    "redis://h:": r"the port of host 'h'",
    "redis://a,h:x": r"the port of host 'h'",
    "redis://a,,b": r"host '' in a broker URL: write host:port",
    "redis://::1": r"write host:port, \[IPv6 address\]:port, or host alone",
    "redis://[::1": r"host '\[' in a broker URL",
    "redis://h?dead_peer_seconds=soon": (r"option dead_peer_seconds: use a number, such as 2\.5"),
    "redis://h?dead_peer_seconds=nan": r"use a number",
    "redis://h?dead_peer_seconds=inf": r"use a number",
    "redis://h?dead_peer_seconds=": r"option dead_peer_seconds: use a number",
    "redis://h?max_payload_bytes=1.5": (
        r"option max_payload_bytes: use a whole number, such as 1024"
    ),
    "redis://h?events_queue_size=0": r"option events_queue_size: must be over 0",
    "redis://h?publish_timeout_seconds=-1": (r"option publish_timeout_seconds: must be over 0"),
    "redis://h?prefix=a b": r"option prefix: use 1 to 64 letters",
    "redis://h?prefix=": r"option prefix: use",
    "redis://h?prefix=x&prefix=y": r"option 'prefix' occurs twice in a broker URL: keep one",
    "redis://h?tls_verify=a&tls_verify=b": r"option 'tls_verify' occurs twice",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_wrong_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=BAD[text]):
        BrokerURL.parse(text)


BAD_FOR_ITS_BROKER = {
    "reddis://h": r"reddis://h: unknown scheme 'reddis'; did you mean 'redis'\? valid: .*memory",
    "http://h": r"unknown scheme 'http'; valid: fakeredis, memory, redis",
    "redis://h?dead_peer_second=1": (
        r"redis://h: unknown option 'dead_peer_second'; did you mean 'dead_peer_seconds'\? valid: "
    ),
    "redis://h?tls_verify=none": r"unknown option 'tls_verify'",
    "memory://?db=1": r"unknown option 'db'",
    "rediss://h?tls_verify=maybe": r"option tls_verify: use 'full', 'ca' or 'none'",
    "rediss://h?tls_ca_file=/no/ca.pem": r"option tls_ca_file: no such file",
    "redis://h/main": r"database 'main' is not a number: write redis://host:6379/0, or nothing",
    "redis://": r"redis:// takes exactly one host, not 0",
    "redis://a,b": r"redis:// takes exactly one host, not 2",
    "redis+unix://tmp/a": r"write redis\+unix:///path/to/socket, with three slashes",
    "redis+unix://": r"with three slashes",
}


@pytest.mark.parametrize("text", BAD_FOR_ITS_BROKER)
def test_what_a_broker_cannot_use_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=BAD_FOR_ITS_BROKER[text]):
        open_broker(text)


def test_a_driver_option_that_the_driver_does_not_know_is_named() -> None:
    url = BrokerURL.parse("redis://h", {"socket_keepaliv": True})
    with pytest.raises(
        ConfigurationError,
        match="unknown driver option 'socket_keepaliv'; did you mean 'socket_keepalive'",
    ):
        open_broker(url)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "django_sockets.backends.fakeredis", raising=False)
    monkeypatch.setitem(sys.modules, "fakeredis", None)
    with pytest.raises(
        ConfigurationError,
        match=re.escape(
            "'fakeredis' is not installed: run pip install 'django-sockets[fakeredis]>=4.0.dev0'"
        ),
    ):
        open_broker("fakeredis://")


@pytest.mark.parametrize("value", [None, 6379, b"redis://h", ["redis://h"]])
def test_something_else_than_text_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="a broker URL is text such as"):
        BrokerURL.parse(value)  # type: ignore[arg-type]


SECRET_IN = [
    "redis://:hunter2@h",
    "redis://me:hunter2@h:6379/0?prefix=x",
    "me:hunter2@h:6379",
    "me:hun/ter2/hunter2@h",
    "redis:/me:hunter2@h",
    "6redis://me:hunter2@h",
    "redis://me:hunter2@h:x",
    "redis://me:hunter2",
    "redis://:hunter2",
    "redis://me:a:hunter2",
    "redis://me:hunter2/x@h",
    "redis://me:12/hunter2@h:6379",
    "redis://me:12?hunter2@h:6379",
    "redis://me:hunter2?x@h:6379",
    "redis://me:hunter2#x@h:99999",
    "redis://me:hunter2@h?dead_peer_seconds=x",
    "redis://me:hunter2@h?nonsense=1",
    "redis://me:hunter2@h,b",
    "redis://me:hunter2@h/main",
    "rediss://me:hunter2@h?tls_verify=x",
    "reddis://me:hunter2@h",
    "redis+unix://me:hunter2@",
]


@pytest.mark.parametrize("text", SECRET_IN)
def test_a_password_is_never_repeated(text: str) -> None:
    try:
        url = BrokerURL.parse(text)
        shown = f"{url} {url!r} {(url,)}"
        open_broker(url)
    except ConfigurationError as exc:
        shown = str(exc)
    assert "hunter2" not in shown


def test_the_redacted_url_keeps_the_rest() -> None:
    url = BrokerURL.parse("valkey://m%40e:hunter2@[::1]:1,h/a b?prefix=x")
    assert str(url) == "redis://m%40e:***@[::1]:1,h/a%20b"
    assert repr(url) == "BrokerURL('redis://m%40e:***@[::1]:1,h/a%20b')"
