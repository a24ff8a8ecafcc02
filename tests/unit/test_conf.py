"""Every form of the configuration, and the errors for wrong ones."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from django_sockets import ConfigurationError
from django_sockets.conf import (
    Config,
    Settings,
    default_config,
    load_config,
)
from django_sockets.testing import override_broker
from django_sockets.url import BrokerURL

URL = "redis://localhost:6379"
PARSED = BrokerURL.parse(URL)

SAME = [
    URL,
    PARSED,
    Config(PARSED),
    [URL],
    (URL,),
    [{"address": URL}],
    {"url": URL},
    {"hosts": [URL]},
    {"hosts": [{"address": URL}]},
    {"hosts": ({"host": "localhost", "port": 6379},)},
    [{"host": "localhost"}],
    {"hosts": [PARSED]},
]


@pytest.mark.parametrize("source", SAME, ids=repr)
def test_each_form_means_the_same_broker(source: Any) -> None:
    assert load_config(source) == Config(PARSED)
    assert hash(load_config(source)) == hash(Config(PARSED))


def test_driver_options_of_a_host_reach_the_url() -> None:
    config = load_config([{"address": URL, "socket_keepalive": True}])
    assert config.url.driver_options == {"socket_keepalive": True}
    assert config != load_config(URL)
    config = load_config([{"host": "::1", "port": 7000, "password": "secret"}])
    assert str(config.url) == "redis://[::1]:7000"
    assert config.url.driver_options == {"password": "secret"}
    assert "secret" not in repr(config)


def test_settings_of_the_process_are_separate_from_the_broker() -> None:
    config = load_config({"url": URL, "sync_call_timeout_seconds": 3, "handler_threads": 2})
    assert config.settings == Settings(sync_call_timeout_seconds=3, handler_threads=2)
    assert load_config(URL).settings == Settings()


BAD: list[tuple[Any, str]] = [
    (7, r"a configuration is a URL, a list or a dict, not int: write \"redis://"),
    ([], r"a list of hosts is empty: name one or more"),
    ([URL, f"{URL}?prefix=x"], r"redis://localhost:6379 occurs twice in a list of hosts: keep one"),
    ({"url": []}, r"a list of hosts is empty"),
    ([{"master_name": "main"}], r"'master_name' and 'sentinels'"),
    ([7], r"a host is a URL or a dict with 'address', not int"),
    ([{}], r"a host dict needs 'address' \(a URL\), or 'host' and 'port'"),
    ([{"port": 1}], r"a host dict needs 'address'"),
    ([{"address": None}], r"a host dict needs 'address'"),
    ([{"address": 7}], r"a broker URL is text such as"),
    ([{"host": "h", "port": "x"}], r"the port of host 'h'"),
    ({}, r"a configuration dict needs either 'url' or 'hosts'"),
    ({"url": URL, "hosts": [URL]}, r"needs either 'url' or 'hosts'"),
    ({"hosts": URL}, r"'hosts' is a list such as"),
    ({"hosts": {"address": URL}}, r"'hosts' is a list such as"),
    ({"host": [URL]}, r"unknown setting 'host'; did you mean 'hosts'\? valid: .*url"),
    ({"url": URL, "handler_thread": 1}, r"did you mean 'handler_threads'\?"),
    ({"url": URL, "handler_threads": 0}, r"setting handler_threads=0: use a number over 0"),
    ({"url": URL, "handler_threads": True}, r"handler_threads=True: use a number over 0"),
    (
        {"url": URL, "sync_call_timeout_seconds": "10"},
        r"sync_call_timeout_seconds='10': use a number over 0",
    ),
    ("localhost", r"has no scheme"),
]


@pytest.mark.parametrize(("source", "message"), BAD, ids=[repr(bad[0]) for bad in BAD])
def test_what_is_wrong_is_named(source: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_config(source)


def test_without_a_word_it_is_memory_and_the_environment_can_say_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DJANGO_SOCKETS_URL", raising=False)
    assert str(load_config().url) == "memory://"
    monkeypatch.setenv("DJANGO_SOCKETS_URL", "")
    assert str(load_config().url) == "memory://"
    monkeypatch.setenv("DJANGO_SOCKETS_URL", URL)
    assert load_config(None) == load_config(URL)
    assert load_config("memory://x") != load_config(URL)


def test_a_test_overrides_the_default_and_gives_it_back() -> None:
    before = default_config()
    with override_broker("memory://outer") as outer:
        assert default_config() is outer
        with override_broker("memory://inner"):
            assert str(default_config().url) == "memory://inner"
        assert default_config() is outer
    assert default_config() == before
    with pytest.raises(ConfigurationError), override_broker("nonsense"):
        pass
    assert default_config() == before


def in_a_process_of_its_own(code: str, **environment: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_djangos_settings_come_before_the_environment() -> None:
    code = """
from django.conf import settings
settings.configure(DJANGO_SOCKETS_CONFIG={"url": "memory://django"})
from django_sockets.conf import load_config
print(load_config().url)
"""
    assert in_a_process_of_its_own(code, DJANGO_SOCKETS_URL=URL) == "memory://django"


def test_django_that_is_installed_and_not_configured_does_no_harm() -> None:
    code = """
import django.conf
from django_sockets.conf import load_config
from django_sockets.optional_django import database_hygiene
print(load_config().url)
with database_hygiene():
    pass
"""
    assert in_a_process_of_its_own(code, DJANGO_SOCKETS_URL=URL) == URL


def test_plain_python_use_does_not_import_django() -> None:
    code = """
import sys
from django_sockets import open_broker, open_hub
from django_sockets.conf import load_config
print(load_config().url, "django" in sys.modules)
"""
    assert in_a_process_of_its_own(code) == "memory:// False"
