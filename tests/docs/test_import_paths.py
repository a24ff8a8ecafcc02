"""Every import path that the documentation names exists, so that applications keep working."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PATHS = {
    "django_sockets": """
        AuthError BrokerClosed BrokerError CallError ChannelError ConfigurationError ConnectError
        DjangoSocketsError EncodeError Gap HistoryError Hub Message NotAllowed PayloadTooLarge
        PositionError Presence PresenceError PublishError Reject RequestError SubscribeError drain
        local_hubs open_broker open_hub
    """,
    "django_sockets.broadcaster": "Broadcaster",
    "django_sockets.broker": """
        Broker HistorySink Limits PresenceSink Report Sink SupportsHistory SupportsPresence
        check_channel
    """,
    "django_sockets.closing": """
        UNAUTHORIZED async_close_sockets async_revoke_channels close_local_sockets close_sockets
        on_missed_orders revoke_channels
    """,
    "django_sockets.conf": "default_config load_config",
    "django_sockets.errors": """
        AuthError BrokerClosed BrokerError CallError ChannelError ConfigurationError ConnectError
        DjangoSocketsError EncodeError HistoryError NotAllowed PayloadTooLarge PositionError
        PresenceError PresenceFull PublishError Reject RequestError SubscribeError
    """,
    "django_sockets.hub": "Hub HubStats Subscriber open_hub",
    "django_sockets.integration": """
        ProtocolTypeRouter URLRouter broadcast_on_commit event_id events_view
    """,
    "django_sockets.integration.channel_layer": "ChannelLayer",
    "django_sockets.integration.live_page": "live_page_urls",
    "django_sockets.middleware": """
        BaseTokenAuthMiddleware DRFTokenAuthMiddleware OriginMiddleware SessionAuthMiddleware
        connect_signals secure
    """,
    "django_sockets.observability": """
        BatchDelivered ConnectFailed ConnectionClosed ConsumerSlow GapSignalled HandshakeEnded
        HistoryHealed HookCalled HubCollector LinkLost LinkRestored Observer Published
        RequestAnswered add_observer collect_metrics metrics_text metrics_view remove_observer
        start_metrics_server start_tracing stop_tracing
    """,
    "django_sockets.overrides": """
        BrokerFactory DatabaseContext PublishObserver observe_publishes override_database_context
        override_default_config
    """,
    "django_sockets.presence": """
        LeaseAction LeaseReply LeaseState PresenceChange PresenceDiff PresenceSnapshot
    """,
    "django_sockets.registry": "open_broker schemes",
    "django_sockets.runtime": "local_hubs",
    "django_sockets.servers.gunicorn": "UvicornWorker",
    "django_sockets.servers.uvicorn": "WebSocketProtocol",
    "django_sockets.signed_channels": "async_position channel_token position",
    "django_sockets.sockets": "BaseSocketServer",
    "django_sockets.testing": """
        Broadcast CapturedBroadcasts Faults FaultyBroker HandshakeRefused LiveSocketServer
        SocketClient SocketClosed SyncSocketClient capture_broadcasts moved_clock override_broker
    """,
    "django_sockets.testing.cases": "LiveSocketServerTestCase SocketTestCase",
    "django_sockets.testing.clusters": "CacheCluster",
    "django_sockets.testing.contract": """
        BrokerContract CacheControl ClusterControl ContractTests CrashContract HistoryContract
        HostsControl LeaseContract NetworkContract PresenceContract PresenceFaultContract
        SentinelControl ServerContract ServerControl ServerlessControl TroubleContract
    """,
    "django_sockets.testing.ledger": "Ledger Listener check_stream listening",
    "django_sockets.testing.processes": "",
    "django_sockets.testing.proxy": "FaultProxy",
    "django_sockets.testing.pytest_plugin": """
        captured_broadcasts live_socket_server socket_client sockets_broker sync_socket_client
    """,
    "django_sockets.testing.sentinels": "SentinelTrio",
    "django_sockets.testing.serverless": "ServerlessEmulation",
    "django_sockets.testing.servers": "CacheServer RedisServer ServerUnavailable ValkeyServer",
    "django_sockets.typed": "on",
    "django_sockets.url": "BrokerOptions BrokerURL",
    "django_sockets.utils": "ProtocolTypeRouter URLRouter run_in_thread",
}
"""The public names by module. Take one away only with a major version."""

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = sorted((ROOT / "examples").rglob("*.py"))


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in PATHS.items() for name in names.split() or [""]],
)
def test_a_public_name_is_where_it_was(module: str, name: str) -> None:
    imported = importlib.import_module(module)
    assert not name or getattr(imported, name) is not None


def sources() -> Iterator[str]:
    """The Python code that people copy."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        yield from re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for program in PROGRAMS:
        yield program.read_text(encoding="utf-8")


def test_the_table_has_every_import_of_the_documents_and_examples() -> None:
    found = {
        (node.module, alias.name)
        for source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("django_sockets")
        for alias in node.names
    }
    assert ("django_sockets.sockets", "BaseSocketServer") in found
    listed = {(module, name) for module, names in PATHS.items() for name in names.split()}
    assert found - listed == set()


def test_the_table_has_every_module_that_the_text_of_a_page_names() -> None:
    words = {
        word
        for page in PAGES
        for word in re.findall(
            r"`(django_sockets\.[a-z_.]*[a-z_])", page.read_text(encoding="utf-8")
        )
    }
    modules = {word for word in words if (ROOT / word.replace(".", "/")).is_dir()}
    modules |= {word for word in words if (ROOT / f"{word.replace('.', '/')}.py").is_file()}
    assert "django_sockets.testing" in modules
    # The brokers are named as a package; a URL opens them, and no page imports one. A project
    # includes the URLs, which need its apps; tests/django/test_live_page.py imports them.
    assert modules - PATHS.keys() == {"django_sockets.backends", "django_sockets.urls"}
