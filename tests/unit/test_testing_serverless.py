"""The serverless emulation refuses the commands that such a service refuses, and no others."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_sockets.testing.serverless import UNREACHABLE, ServerlessEmulation
from django_sockets.url import BrokerURL


@pytest.fixture
def service(restored_serverless: ServerlessEmulation) -> ServerlessEmulation:
    return restored_serverless


def client_of(service: ServerlessEmulation, **options: Any) -> redis.Redis:
    url = BrokerURL.parse(service.url)
    assert url.scheme == "redis+serverless"
    return redis.Redis(
        host=url.addresses[0].host,
        port=url.addresses[0].port or 0,
        username=url.username,
        password=url.password,
        ssl=True,
        ssl_ca_certs=dict(url.extra)["tls_ca_file"],
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        **options,
    )


def test_refused_commands_are_answered_in_their_place(service: ServerlessEmulation) -> None:
    before = service.refused
    with client_of(service) as client, client.pipeline(transaction=False) as pipeline:
        client.response_callbacks.clear()
        pipeline.execute_command("ECHO", "1")
        pipeline.execute_command("CONFIG", "GET", "maxmemory")
        pipeline.execute_command("ECHO", "2")
        pipeline.execute_command("EVAL", "return redis.call('get', 'undeclared')", 0)
        pipeline.execute_command("PSUBSCRIBE", "room*")
        pipeline.execute_command("EVAL", "return KEYS[1]", 1, "declared")
        first, config, second, script, pattern, declared = pipeline.execute(raise_on_error=False)
    assert (first, second, declared) == ("1", "2", "declared")
    assert "unknown command 'CONFIG', with args beginning with: 'GET' 'maxmemory'" in str(config)
    assert "not declared" in str(script)
    assert "unknown command 'PSUBSCRIBE'" in str(pattern)
    assert service.refused - before == {"CONFIG": 1, "EVAL": 1, "PSUBSCRIBE": 1}


def test_a_cluster_whose_node_names_an_address_that_cannot_be_reached(
    service: ServerlessEmulation,
) -> None:
    with client_of(service) as client:
        client.response_callbacks.clear()
        ((first, last, node, *_),) = client.execute_command("CLUSTER", "SLOTS")
    assert (first, last, node[0]) == (0, 16383, UNREACHABLE)


def test_sharded_channels_work_and_those_of_two_slots_at_once_do_not(
    service: ServerlessEmulation,
) -> None:
    before = service.connections()
    with (
        client_of(service, protocol=3) as client,
        client_of(service) as publisher,
        client.pubsub() as heard,
    ):
        heard.ssubscribe("p:{room}")
        assert heard.get_message(timeout=5) is not None
        payload = "x" * 1_000_000
        assert publisher.execute_command("SPUBLISH", "p:{room}", payload) == 1
        message = heard.get_message(timeout=5)
        assert message is not None
        assert message["data"] == payload
        assert (service.channels(), service.connections()) == (1, before + 2)
        heard.ssubscribe("a", "b")
        with pytest.raises(redis.ResponseError, match="same slot"):
            heard.get_message(timeout=5)


def test_it_freezes_dies_and_comes_back_as_one(service: ServerlessEmulation) -> None:
    url = service.url
    service.pause()
    with client_of(service, socket_timeout=0.1) as client, pytest.raises(redis.TimeoutError):
        client.ping()
    service.resume()
    with client_of(service) as client:
        assert client.ping()
        service.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
    service.start()
    assert service.url == url
    with client_of(service) as client:
        assert client.execute_command("SPUBLISH", "room", "x") == 0


def test_strangers_are_kept_out(service: ServerlessEmulation) -> None:
    once: Any = {"retry": Retry(NoBackoff(), 0)}
    with redis.Redis(port=service.port, **once) as plain, pytest.raises(redis.ConnectionError):
        plain.ping()
    ca = str(service.tls_ca_file)
    with (
        redis.Redis(port=service.port, ssl=True, ssl_ca_certs=ca, **once) as nobody,
        pytest.raises(redis.AuthenticationError),
    ):
        nobody.ping()


def test_an_old_connection_is_closed_even_while_it_is_used() -> None:
    with (
        ServerlessEmulation(max_connection_age_seconds=0.5) as service,
        client_of(service, single_connection_client=True) as client,
    ):
        started = time.monotonic()
        with contextlib.suppress(redis.ConnectionError):
            while time.monotonic() - started < 5:
                client.ping()
        assert 0.4 < time.monotonic() - started < 2
        assert client.ping()
