"""valkey-glide as the driver that publishes."""

from .publisher import GlideConnection, GlideIAM, GlidePublisher, glide_publisher

__all__ = ["GlideConnection", "GlideIAM", "GlidePublisher", "glide_publisher"]
