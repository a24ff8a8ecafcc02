"""Integration with Django: routing, the app and its system checks, transactions.

This package imports Django, and the rest of the library does not import it: the library works
without an entry in INSTALLED_APPS, and in plain Python.
"""

from .on_commit import broadcast_on_commit
from .routing import ProtocolTypeRouter, URLRouter

__all__ = ["ProtocolTypeRouter", "URLRouter", "broadcast_on_commit"]
