"""The publishing of a hub, with its spans and its reports to observers.

It adds the envelope to each payload. `Hub` inherits from `Publishing`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..broker import Broker, ThreadPublisher, check_channel
from ..conf import Config
from ..delivery.envelope import HEADER_BYTES, RESERVE_BYTES, Publisher
from ..errors import BrokerClosed, PayloadTooLarge, PublishError
from ..observer import seam
from ..overrides import channels_after_observers, position_observers, publish_observers
from ..tracer import Span, Tracer, traced, tracing
from .observed import observed_call, observed_publish
from .stats import Counters

if TYPE_CHECKING:
    from .history.pages import HistoryPages

__all__ = ["CONTROL", "Publishing"]

CONTROL = "\x01control"
"""The channel of orders between django_sockets processes. Applications cannot use the name, because
`check_channel` refuses it."""


class Publishing:
    """The publishing of one hub.

    Attributes:
        config: its configuration.
        closed: `Hub.aclose` was called.
        counters: the counters of `Hub.stats`.
        max_payload_bytes: the largest payload of `publish`.
        threads: lets threads publish without the event loop; None if the broker cannot.
    """

    _broker: Broker
    _pages: HistoryPages
    max_payload_bytes: int
    threads: ThreadPublisher | None

    def __init__(self, config: Config) -> None:
        self.config = config
        self.closed = False
        self.counters = Counters()
        self._publisher = Publisher(config.url.options.channels_remembered)
        self._count_lock = threading.Lock()

    def _publish_with(self, broker: Broker) -> None:
        limits, options = broker.limits, self.config.url.options
        self._broker = broker
        self.threads = getattr(broker, "thread_publisher", None)
        self._max_channel_bytes = limits.max_channel_bytes
        self.max_payload_bytes = min(
            options.max_payload_bytes, limits.max_payload_bytes - HEADER_BYTES - RESERVE_BYTES
        )

    async def publish(
        self,
        channels: str | Iterable[str],
        payload: bytes,
        *,
        is_text: bool = False,
        origin: bytes | None = None,
        compress: bool = True,
    ) -> None:
        """Publish one payload to 1..n channels.

        Messages of this hub on one channel arrive in the order in which `publish` was called. A
        cancelled call may or may not have published.

        Args:
            channels: one name, or several. Repeated names count once.
            payload: at most `max_payload_bytes`.
            is_text: the payload is JSON text in UTF-8, which sockets send as a text frame.
            origin: id of a socket that must not receive the message.
            compress: False: servers with prepared frames send it without compression.

        Raises:
            ChannelError, PayloadTooLarge: nothing was published.
            PublishError: for some channels, the message did not reach the server, or it is unknown
                whether it did.
            BrokerClosed: after `aclose`.
        """
        names = self.check_channels(channels)
        if len(payload) > self.max_payload_bytes:
            raise PayloadTooLarge(len(payload), self.max_payload_bytes)
        if self.closed:
            raise BrokerClosed(self.config.url)
        if publish_observers:
            names = channels_after_observers(names, payload, is_text)
        if not names:
            return
        if self.threads is not None and self.threads.lent:
            self.threads.take_back()
        span = None if tracing.tracer is None else self._span(tracing.tracer, names, payload)
        traceparent = None if span is None else span.traceparent
        headers = self._publisher.headers(names, is_text, origin, compress, traceparent)
        self.counters.published += len(names)
        try:
            publishing = self._broker.publish(names, payload, headers)
            if span is not None:
                publishing = traced(span, publishing)
            if (observed_by := seam.observer) is not None:
                publishing = observed_publish(
                    observed_by, publishing, self.config.url.scheme, len(names), len(payload)
                )
            await publishing
        except Exception:
            self._count_publish_error()
            raise
        if position_observers:
            for name, position in await self._pages.places_of(names, headers):
                for observer in tuple(position_observers):
                    observer(name, payload, position)

    def publish_on_thread(
        self,
        channels: str | Iterable[str],
        payload: bytes,
        is_text: bool,
        timeout_seconds: float,
        *,
        compress: bool = True,
    ) -> bool:
        """On any thread: `publish` without the event loop, if the broker can at this moment.

        Returns:
            False if `publish` must do it; nothing was sent.

        Raises:
            ChannelError, PayloadTooLarge, PublishError: see `publish`.
            NoReplyInTime: it is unknown whether the server accepted the message.
        """
        if self.threads is None or publish_observers or self.closed:
            return False
        names = self.check_channels(channels)
        if not names:
            return True
        if len(payload) > self.max_payload_bytes:
            raise PayloadTooLarge(len(payload), self.max_payload_bytes)

        span = None if tracing.tracer is None else self._span(tracing.tracer, names, payload)
        traceparent = None if span is None else span.traceparent

        def headers() -> Sequence[bytes]:
            self.counters.published += len(names)
            return self._publisher.headers(names, is_text, None, compress, traceparent)

        publish = partial(self.threads.publish_on_thread, names, payload, headers, timeout_seconds)
        if span is not None:
            from .traced import traced_call  # Processes without a tracer do not load it.

            publish = partial(traced_call, span, publish)
        try:
            if (observer := seam.observer) is None:
                return publish()
            scheme = self.config.url.scheme
            return observed_call(observer, publish, scheme, len(names), len(payload))
        except PublishError:
            self._count_publish_error()
            raise

    def _span(self, tracer: Tracer, names: Sequence[str], payload: bytes) -> Span | None:
        return tracer.publish(self.config.url.scheme, names, len(payload))

    def _count_publish_error(self) -> None:
        with self._count_lock:  # Threads publish, too.
            self.counters.publish_errors += 1

    async def publish_control(self, payload: bytes) -> None:
        """Publish JSON text on the control channel, without observers.

        Raises:
            PublishError, BrokerClosed: see `publish`.
        """
        if self.closed:
            raise BrokerClosed(self.config.url)
        await self._publish_internal(CONTROL, payload)

    async def _publish_internal(self, channel: str, payload: bytes) -> None:
        """Publish JSON text on one of the library's own channels, also while the hub closes."""
        if self.threads is not None:
            self.threads.take_back()
        self.counters.published += 1
        try:
            await self._broker.publish(
                [channel], payload, self._publisher.headers([channel], is_text=True)
            )
        except Exception:
            self._count_publish_error()
            raise

    def check_channels(self, channels: str | Iterable[str]) -> list[str]:
        """Return the channel names without repetitions.

        Raises:
            ChannelError: a name is not valid.
        """
        most = self._max_channel_bytes
        if isinstance(channels, list) and len(channels) == 1:  # True for nearly every call.
            return [check_channel(channels[0], most)]
        if isinstance(channels, (str, bytes)) or not isinstance(channels, Iterable):
            return [check_channel(channels, most)]
        return list(dict.fromkeys(check_channel(channel, most) for channel in channels))

    def names_while_open(self, channels: str | Iterable[str]) -> list[str]:
        """`check_channels` of a hub that is open.

        Raises:
            ChannelError, BrokerClosed: see `publish`.
        """
        names = self.check_channels(channels)
        if self.closed:
            raise BrokerClosed(self.config.url)
        return names
