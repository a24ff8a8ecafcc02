"""The names of docs/migration.md exist, and its examples for 4.0 run."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import django_sockets
import django_sockets.closing
import django_sockets.integration
import django_sockets.middleware
import django_sockets.testing
import django_sockets.typed
import django_sockets.utils
from django_sockets.broadcaster import Broadcaster
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient, override_broker
from django_sockets.url import BrokerOptions

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
OURS = [block for block in BLOCKS if "django_sockets" in block and "import" in block]
MODULES = (
    django_sockets,
    django_sockets.closing,
    django_sockets.integration,
    django_sockets.middleware,
    django_sockets.testing,
    django_sockets.typed,
    django_sockets.utils,
    django_sockets.sockets,
    django_sockets.broadcaster,
)


def right_hand_cells() -> str:
    """The cells of the tables about this version."""
    rows = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("|")]
    return "\n".join(" | ".join(row[1:]) for row in rows)


def test_every_block_is_python() -> None:
    assert len(BLOCKS) >= 9
    for block in BLOCKS:
        compile(block, "migration.md", "exec")


@pytest.mark.parametrize("pattern", [r"self\.(\w+)", r"client\.(\w+)", r"Broadcaster\(\)\.(\w+)"])
def test_a_method_that_it_names_exists(pattern: str) -> None:
    owner = {"s": BaseSocketServer, "c": SocketClient, "B": Broadcaster}[pattern[0]]
    own = "\n".join(block for block in OURS if "channels." not in block)
    named = set(re.findall(pattern, right_hand_cells() + own)) - {"room", "scope"}
    assert named
    assert [name for name in named if not hasattr(owner, name)] == []


def test_a_hook_an_attribute_a_function_and_an_option_that_it_names_exist() -> None:
    cells = right_hand_cells()
    text = cells + PAGE[PAGE.index("### What else") : PAGE.index("## From Channels")]
    words = {
        "authorize", "connect", "receive", "disconnect", "error", "gap", "decode_error",
        "configure",
        "subprotocol", "ws_encoder", "ws_decoder", "allowed_origins", "outbox_messages",
        "outbox_bytes", "max_message_bytes", "max_subscriptions", "as_asgi",
        "async_handle_received_broadcast",
    }  # fmt: skip
    for word in words:
        assert re.search(rf"\b{word}\b", text), word
        assert hasattr(BaseSocketServer, word), word
    names = set(re.findall(r"`@?([A-Z]\w+)(?:\(|`)", cells)) - {"Origin", "TestCase", "Chat"}
    names |= {"secure", "close_sockets", "broadcast_on_commit", "capture_broadcasts", "on"}
    missing = [name for name in names if not any(hasattr(one, name) for one in MODULES)]
    assert missing == []
    options = {field.name for field in dataclasses.fields(BrokerOptions)}
    assert set(re.findall(r"\?(\w+)=", cells)) == {"prefix", "max_payload_bytes"} <= options


@pytest.fixture
def modules() -> Iterator[None]:
    """The modules that the page's blocks import from their project."""
    names = ("mysite", "mysite.asgi", "chat", "chat.sockets")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    yield
    for name in names:
        del sys.modules[name]


async def test_the_new_consumer_passes_the_new_test(modules: None) -> None:
    from django.urls import path

    from django_sockets.utils import URLRouter

    (chat,) = [block for block in OURS if "class Chat(" in block and "url_route" in block]
    (test,) = [block for block in OURS if "SocketClient(application" in block]
    names: dict[str, Any] = {}
    exec(chat, names)
    route = path("ws/chat/<slug:room>/", names["Chat"].as_asgi)
    sys.modules["mysite.asgi"].application = URLRouter([route])  # type: ignore[attr-defined]
    exec(test, names)
    await names["test_chat"]()


async def test_the_ways_back_are_ways_back() -> None:
    (block,) = [block for block in OURS if "def error(" in block]
    names: dict[str, Any] = {}
    exec(block, names)
    headers = {"origin": "https://app.example.com"}
    with override_broker():
        async with SocketClient(names["Chat"].as_asgi, headers=headers) as client:
            await client.send_json("not delivered to itself, since it has not subscribed")

            class Failing(names["Chat"]):  # type: ignore[misc]
                def receive(self, data: Any) -> None:
                    if data == "fail":
                        raise ValueError(data)
                    self.send(data)

            async with SocketClient(Failing.as_asgi) as other:
                await other.send_json("fail")
                await other.send_json("still here")
                assert await other.receive_json() == "still here"
