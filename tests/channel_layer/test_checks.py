"""System checks of CHANNEL_LAYERS."""

from __future__ import annotations

import re
from typing import Any

import pytest

from django_sockets.integration.layer_checks import BACKEND
from django_sockets.testing.ports import free_port
from django_sockets.testing.servers import CacheServer
from support.shop_process import MANAGE, run


def check(
    config: Any, *arguments: str, backend: str = BACKEND, **environment: str
) -> tuple[str, set[str]]:
    """What `manage.py check` prints with one channel layer, and the ids of ours in it."""
    layer = {"BACKEND": backend, **({} if config is None else {"CONFIG": config})}
    settings = {"CHANNEL_LAYERS": {"default": layer}}
    command = [*MANAGE, "check", "--tag", "django_sockets", *arguments]
    ended = run(command, settings, **environment)
    printed = ended.stdout + ended.stderr
    assert "Traceback" not in printed
    return printed, set(re.findall(r"\(django_sockets\.(\w+)\)", printed))


def test_a_layer_in_order_causes_no_message(valkey_server: CacheServer) -> None:
    assert check({"url": valkey_server.url}, "--deploy")[1] <= {"I008"}
    assert check({"hosts": [["127.0.0.1", valkey_server.port]]})[1] == set()
    assert check(None)[1] == set()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"url": "reddis://localhost"}, "did you mean 'redis'"),
        ({"hosts": "redis://localhost"}, "'hosts' is a list"),
        ({"capcity": 5}, "did you mean 'capacity'"),
        ({"hosts": ["redis://:opensesame@localhost?prefx=a"]}, "did you mean 'prefix'"),
        ("redis://localhost", "CONFIG"),
    ],
)
def test_a_wrong_config_is_an_error_that_names_the_layer(config: Any, words: str) -> None:
    printed, found = check(config)
    assert found == {"E021"}
    assert "CHANNEL_LAYERS['default']" in printed
    assert words in printed
    assert "opensesame" not in printed


def test_memory_with_several_workers_is_a_warning() -> None:
    printed, found = check({"url": "memory://"}, WEB_CONCURRENCY="4")
    assert "W022" in found
    assert "WEB_CONCURRENCY=4" in printed
    assert "W022" in check(None, WEB_CONCURRENCY="4")[1]
    assert "W022" not in check({"url": "redis://localhost"}, WEB_CONCURRENCY="4")[1]
    assert "W022" not in check({"url": "memory://"}, WEB_CONCURRENCY="1")[1]


def test_a_broker_that_does_not_answer_is_a_warning_with_deploy() -> None:
    config = {"url": f"redis://:opensesame@127.0.0.1:{free_port()}"}
    assert check(config)[1] == set()
    printed, found = check(config, "--deploy")
    assert "W023" in found
    assert "opensesame" not in printed


def test_the_layers_of_other_packages_are_left_alone() -> None:
    config = {"capcity": 5, "url": "memory://"}
    backend = "channels.layers.InMemoryChannelLayer"
    assert check(config, "--deploy", backend=backend)[1] <= {"I008"}
