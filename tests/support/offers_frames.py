"""How a client recognizes a server that runs our protocol class for uvicorn."""

from __future__ import annotations

from typing import Any

__all__ = ["offers_frames"]


def offers_frames(client: Any) -> bool:
    """Whether the server compresses without context, which the client did not ask for.

    Args:
        client: a connection of `websockets`, with its default compression.
    """
    extensions = client.response.headers.get("Sec-WebSocket-Extensions", "")
    return "server_no_context_takeover" in extensions
