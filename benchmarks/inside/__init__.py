"""Programs that measure one process without a server. Each takes a peer's key, prints JSON."""
