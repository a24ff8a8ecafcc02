"""Event loops, threads, fork and exit: where calls run, and the hub that they share."""

from .background import local_hubs

__all__ = ["local_hubs"]
