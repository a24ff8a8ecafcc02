"""Channel layers on each kind of broker."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("channels")

from django_sockets.integration.channel_layer import ChannelLayer
from support.channel_layers import MakeLayer

SERVERS = {
    "valkey": ["valkey_server"],
    "cluster": ["valkey_cluster"],
    "sentinel": ["redis_sentinels"],
    "serverless": ["serverless"],
    "hosts": ["valkey_server", "redis_server"],
}
KINDS = ["memory", "fakeredis", *SERVERS]
_numbers = itertools.count()


@pytest.fixture(params=KINDS)
def broker_url(request: pytest.FixtureRequest) -> str:
    """The URL of a broker of each kind."""
    kind = request.param
    if kind in ("memory", "fakeredis"):
        return f"{kind}://channels{next(_numbers)}"
    return " ".join(request.getfixturevalue(name).url for name in SERVERS[kind])


@pytest.fixture
async def make_layer(broker_url: str) -> AsyncIterator[MakeLayer]:
    """Makes layers that share a prefix of their own, and closes them after the test."""
    made: list[ChannelLayer] = []
    prefix = f"test{next(_numbers)}"

    def make(**options: Any) -> ChannelLayer:
        layer = ChannelLayer(**{"url": broker_url, "prefix": prefix, **options})
        made.append(layer)
        return layer

    yield make
    for layer in made:
        await layer.close()


@pytest.fixture
def layer(make_layer: MakeLayer) -> ChannelLayer:
    return make_layer()
