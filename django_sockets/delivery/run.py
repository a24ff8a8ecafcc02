"""Successive messages on one channel, and the frames that all its subscribers share.

One subscriber gets the whole run before the next subscriber, because the kernel needs less than
half of the time for successive data on one connection. The frames of a run are made once for each
kind of connection, and joined, so that a server writes them with one call.
"""

from __future__ import annotations

import msgspec

from .channel import Channel, Recipients
from .client_payload import CLIENT_PROTOCOL
from .frames import BINARY, COMPRESS_FROM_BYTES, TEXT, binary_frame, deflate, frame, text_frame
from .message import Delivery

__all__ = ["RUN_BYTES", "RUN_MESSAGES", "Run", "delivery_frame"]

RUN_BYTES, RUN_MESSAGES = 32 * 1024, 256
"""The most that one subscriber gets before the next subscriber gets the same messages. It is less
than the write buffer at which servers let `send` wait, and less than `TURN_DELIVERIES`."""


class Run(msgspec.Struct, eq=False):
    """Successive messages on one channel that leave out the same socket.

    Attributes:
        channel: the channel of the messages.
        messages: 1..`RUN_MESSAGES` messages in the order of the stream.
        recipients: the subscribers of the channel when the run was made.
        origin: id of the socket that must not receive the messages, or None.
    """

    channel: Channel
    messages: list[Delivery]
    recipients: Recipients
    origin: bytes | None
    _plain: bytes | None = None
    _deflated: dict[int, bytes] | None = None

    def frames(self, window_bits: int) -> bytes:
        """The websocket frames of all messages, one after the other.

        Args:
            window_bits: the window of a compressor without context; 0 for no compression. Plus
                `CLIENT_PROTOCOL` for clients of the protocol.
        """
        if not window_bits:
            if self._plain is None:
                messages = self.messages
                single = len(messages) == 1 and messages[0].is_text
                self._plain = text_frame(messages[0].payload) if single else self._join(0)
            return self._plain
        if self._deflated is None:
            self._deflated = {}
        frames = self._deflated.get(window_bits)
        if frames is None:
            frames = self._deflated[window_bits] = self._join(window_bits)
        return frames

    def _join(self, window_bits: int) -> bytes:
        return b"".join([delivery_frame(delivery, window_bits) for delivery in self.messages])

    @property
    def size_bytes(self) -> int:
        """The size of all payloads."""
        return sum(len(delivery.payload) for delivery in self.messages)

    def split(self) -> tuple[Delivery, Run | None]:
        """The first message, and a run of the others; None if there are no others."""
        first = self.messages[0]
        if len(self.messages) == 1:
            return first, None
        return first, Run(self.channel, self.messages[1:], self.recipients, self.origin)


def delivery_frame(delivery: Delivery, window_bits: int) -> bytes:
    """The frame of one message; see `Run.frames`."""
    payload = delivery.payload
    if window_bits >= CLIENT_PROTOCOL:
        payload = delivery.client_payload()
        window_bits -= CLIENT_PROTOCOL
    if window_bits and delivery.compress and len(payload) >= COMPRESS_FROM_BYTES:
        opcode = TEXT if delivery.is_text else BINARY
        return frame(opcode, deflate(payload, window_bits), compressed=True)
    return text_frame(payload) if delivery.is_text else binary_frame(payload)
