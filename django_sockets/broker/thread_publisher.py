"""The ability to publish on any thread, without the event loop of the broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["NoReplyInTime", "ThreadPublisher"]


class NoReplyInTime(Exception):
    """The server did not answer within the time that the caller set for this call."""


class ThreadPublisher(Protocol):
    """The ability of some brokers to publish on the calling thread, without their event loop.

    A broker that has it offers it as an attribute `thread_publisher`. It saves two thread switches
    for each plain call.
    """

    @property
    def lent(self) -> bool:
        """Whether threads may publish at this moment. For any thread."""

    @property
    def busy_here(self) -> bool:
        """Whether the calling thread is inside `publish_on_thread`, as in a signal handler. No
        call of this thread that waits for a publish could end then."""

    def lend_soon(self) -> None:
        """On the event loop: let threads publish as soon as nothing is queued."""

    def take_back(self) -> None:
        """On the event loop: when it returns, no thread makes headers or writes until it is lent
        again. Call it before you make the headers of a message."""

    def publish_on_thread(
        self,
        channels: Sequence[str],
        payload: bytes,
        headers: Callable[[], Sequence[bytes]],
        timeout_seconds: float,
    ) -> bool:
        """On any thread: publish like `Broker.publish`.

        Args:
            headers: makes one header for each channel. It is called when the message is next in
                order, for one thread at a time, and never between `take_back` and the next loan.

        Returns:
            False if the event loop must publish it; nothing was sent and no header made.

        Raises:
            PublishError: see `Broker.publish`.
            NoReplyInTime: it is unknown whether the server accepted the payload.
        """
