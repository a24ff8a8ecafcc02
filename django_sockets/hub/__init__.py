"""One broker on one event loop, shared by every local subscriber."""

from ..delivery.fanout import Subscriber
from .hub import Hub, hub_on, open_hub

__all__ = ["Hub", "Subscriber", "hub_on", "open_hub"]
