"""A cluster with sharded pub/sub."""

from .broker import ClusterBroker

__all__ = ["ClusterBroker"]
