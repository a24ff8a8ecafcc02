"""Programs that measure one process without a server. The argument is a peer's key; they print
JSON."""
