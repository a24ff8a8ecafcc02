"""Integration with Django: routing, the app and its checks, transactions, server-sent events.

This package imports Django, and the rest of the library does not import it: the library works
without an entry in INSTALLED_APPS, and in plain Python.
"""

from .on_commit import broadcast_on_commit
from .routing import ProtocolTypeRouter, URLRouter
from .server_sent_events import event_id, events_view

__all__ = ["ProtocolTypeRouter", "URLRouter", "broadcast_on_commit", "event_id", "events_view"]
