"""Test case classes for Django's own runner."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar

from django.test import TestCase, TransactionTestCase

from ..conf import Source
from .capture import CapturedBroadcasts, capture_broadcasts
from .live import LiveSocketServer
from .override import override_broker
from .sync_client import SyncSocketClient

__all__ = ["LiveSocketServerTestCase", "SocketTestCase"]


class SocketTestCase(TestCase):
    """A `TestCase` in which each test has an in-memory broker of its own.

    Attributes:
        broker: the configuration of the broker, as for `override_broker`. Set it to
            `{**settings.DJANGO_SOCKETS_CONFIG, "url": "memory://"}` for the history rules of the
            project.
        broadcasts: the broadcasts during the test.
    """

    broker: Source = "memory://"
    broadcasts: CapturedBroadcasts

    def run(self, result: Any = None) -> Any:
        """Run the test with its broker. Subclasses override `setUp`, so it is not set there."""
        with override_broker(self.broker), capture_broadcasts() as self.broadcasts:
            return super().run(result)

    def socket(
        self,
        app: Any,
        path: str = "/",
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> SyncSocketClient:
        """A connected `SyncSocketClient`, which is closed at the end of the test.

        It sends the cookies of `self.client`, like another tab of the same browser, unless
        `headers` has cookies: after `self.client.force_login(user)` it is logged in as that user.
        """
        headers = dict(headers or {})
        jar = self.client.cookies.values()
        if jar and "cookie" not in {name.lower() for name in headers}:
            headers["cookie"] = "; ".join(f"{each.key}={each.coded_value}" for each in jar)
        client = SyncSocketClient(app, path, headers=headers, **options)
        client.connect()
        self.addCleanup(client.close)
        return client


class LiveSocketServerTestCase(TransactionTestCase):
    """Serves `application` to real browsers while the tests of the class run.

    Attributes:
        application: the ASGI application, as in `application = staticmethod(my_app)`.
        live_server: the running `LiveSocketServer`; its `url` and `ws_url` are for the browser.
    """

    application: ClassVar[Any]
    live_server: ClassVar[LiveSocketServer]

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server, on a broker of its own."""
        super().setUpClass()
        with contextlib.ExitStack() as stack:
            stack.enter_context(override_broker())
            cls.live_server = stack.enter_context(LiveSocketServer(cls.application))
            cls.addClassCleanup(stack.pop_all().close)
