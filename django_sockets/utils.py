"""Names that applications import from here. They are defined in other modules."""

from .integration.routing import ProtocolTypeRouter, URLRouter
from .runtime.worker_threads import run_in_thread

__all__ = ["ProtocolTypeRouter", "URLRouter", "run_in_thread"]
