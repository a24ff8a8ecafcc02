"""The server holds the conversations that docs/client-protocol.md promises to authors of clients.

The tests of the JavaScript client run the same file.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from django_sockets.runtime import close_shared_hubs
from django_sockets.testing.servers import CacheServer
from support.protocol_vectors import CONVERSATIONS, FakeTimeLoop, Vectors

HISTORY = {"kept:": {"messages": 100, "seconds": 60}}


def hold(conversation: dict[str, Any], url: str, prepared_frames: bool) -> None:
    """Hold one conversation, on an event loop of its own."""
    loop = FakeTimeLoop()
    config = {"url": url, "history": HISTORY}

    async def run() -> None:
        try:
            await Vectors(copy.deepcopy(conversation), config, prepared_frames).run()
        finally:
            await close_shared_hubs()

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


@pytest.mark.parametrize("prepared_frames", [False, True], ids=["events", "frames"])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda one: one["name"])
def test_in_memory(conversation: dict[str, Any], prepared_frames: bool) -> None:
    hold(conversation, f"memory://vectors-{random.getrandbits(48):x}", prepared_frames)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda one: one["name"])
def test_with_valkey(conversation: dict[str, Any], valkey_server: CacheServer) -> None:
    if any("advance_seconds" in step for step in conversation["steps"]):
        pytest.skip("the time of the server cannot be advanced")
    hold(conversation, f"{valkey_server.url}?prefix=v{random.getrandbits(48):x}", True)
