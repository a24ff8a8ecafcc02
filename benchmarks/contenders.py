"""The peers: this library, and what it is compared with."""

from __future__ import annotations

import importlib.util

from .environments import UVICORN_PROTOCOL, CompiledPeer, NodePeer, Peer


def _our_protocol() -> str:
    """This library's class for uvicorn; uvicorn's own if the library has none."""
    module = "django_sockets.servers.uvicorn"
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    return f"{module}:WebSocketProtocol" if found else UVICORN_PROTOCOL


_OUR_PROTOCOL = _our_protocol()


def _channels(name: str, key: str, layer: str, share: float) -> Peer:
    packages = ("channels", "channels_redis")
    variables = {"BENCH_LAYER": f"channels_redis.{layer}"}
    return Peer(
        name, key, "channels_group", "channels", packages, variables, share=share, most_runs=3
    )


FLOOR = CompiledPeer(
    "floor in C", "floor", "floor.c clients.c handshake.c resp.c", "c", wire="limit"
)
LIMIT = Peer("limit", "limit", "limit")
OURS = Peer(
    "django_sockets",
    "ours",
    "ours",
    protocol=_OUR_PROTOCOL,
    compresses_each=_OUR_PROTOCOL == UVICORN_PROTOCOL,
)
OURS_PLAIN = Peer("django_sockets, uvicorn's own protocol", "ours-plain", "ours", wire="ours")
OURS_GAP = Peer(
    "django_sockets, `gap` hook", "ours-gap", "ours_gap", wire="ours", protocol=_OUR_PROTOCOL
)
OURS_EXCLUDE_SELF = Peer(
    "django_sockets, exclude_self",
    "ours-exclude-self",
    "ours_exclude_self",
    wire="ours",
    protocol=_OUR_PROTOCOL,
    leaves_out_sender=True,
)
PUBLISHED = Peer(
    "django-sockets 3.1.0",
    "published",
    "published",
    "published",
    ("django-sockets==3.1.0",),
    share=0.2,
    most_joining=500,  # Each of its sockets polls 20 times a second.
    most_runs=3,
)
PUBSUB = _channels(
    "channels, pubsub layer", "channels_pubsub", "pubsub.RedisPubSubChannelLayer", share=0.05
)
CORE = _channels("channels, core layer", "channels_core", "core.RedisChannelLayer", share=0.02)
OUR_LAYER = Peer(
    "channels, our layer",
    "channels_ours",
    "channels_group",
    protocol=_OUR_PROTOCOL,
    variables={"BENCH_LAYER": "django_sockets.integration.channel_layer.ChannelLayer"},
    share=0.1,
)
NODE = NodePeer("node ws + ioredis", "node", "node.cjs", "node", ("ws", "ioredis"))
BARE = Peer("bare server", "bare", "bare", greets=False)
REDIS_PY = Peer("redis-py", "redis_py")

PEERS = (
    FLOOR,
    LIMIT,
    OURS,
    OURS_PLAIN,
    OURS_GAP,
    OURS_EXCLUDE_SELF,
    PUBLISHED,
    PUBSUB,
    CORE,
    OUR_LAYER,
    NODE,
    BARE,
    REDIS_PY,
)
