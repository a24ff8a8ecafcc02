"""Our own connections to one Redis-like server."""
