"""Django: routing, the app and its system checks, transactions.

One of the rooms that may import Django. Nothing below imports it: the library works without an
entry in INSTALLED_APPS, and in plain Python.
"""

from .on_commit import broadcast_on_commit
from .routing import ProtocolTypeRouter, URLRouter

__all__ = ["ProtocolTypeRouter", "URLRouter", "broadcast_on_commit"]
