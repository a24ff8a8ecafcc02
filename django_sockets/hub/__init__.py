"""One broker on one event loop, shared by every local subscriber."""

from ..delivery.channel import Subscriber
from .hub import Hub, hub_on, open_hub

__all__ = ["Hub", "Subscriber", "hub_on", "open_hub"]
