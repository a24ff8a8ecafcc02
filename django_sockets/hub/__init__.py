"""One broker on one event loop, shared by every local subscriber."""

from ..delivery.channel import Subscriber
from .hub import Hub, hub_on, open_hub
from .stats import HubStats

__all__ = ["Hub", "HubStats", "Subscriber", "hub_on", "open_hub"]
