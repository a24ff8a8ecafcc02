"""A channel layer of Django Channels on any broker.

    CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "django_sockets.integration.channel_layer.ChannelLayer",
            "CONFIG": {"url": "redis+cluster://10.0.0.1:6379"},
        }
    }

Consumers stay as they are. docs/channels.md describes the layer. It needs the extra `channels`.
"""

from .layer import ChannelLayer

__all__ = ["ChannelLayer"]
