"""A cluster with sharded pub/sub."""
