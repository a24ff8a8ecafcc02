"""A frame that differs from the standard by one byte ends the connection of every subscriber."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from django_sockets.delivery import frames

EDGES = (0, 1, 125, 126, 127, 511, 512, 65535, 65536, 65537)
WORDS = ("grün", "日本語", "🎈", '{"id": 17, "text": "hello"}', "\x00", "plain ASCII ")


def messages(count: int, seed: int) -> list[tuple[bool, bytes]]:
    """Random messages: (is text, payload). The first have the sizes at which the header changes."""
    chance = random.Random(seed)
    found = [(is_text, b"x" * size) for size in EDGES for is_text in (True, False)]
    while len(found) < count:
        size = int(chance.expovariate(1 / 300)) if chance.random() < 0.98 else chance.choice(EDGES)
        if chance.random() < 0.5:
            found.append((False, chance.randbytes(size)))
        else:
            text = "".join(chance.choices(WORDS, k=1 + size // 12))[:size]
            found.append((True, text.encode()))
    return found


def as_websockets(is_text: bool, payload: bytes, window_bits: int) -> bytes:
    extensions = []
    if window_bits:
        extensions = [PerMessageDeflate(True, True, 15, window_bits, {"memLevel": 5})]
    opcode = Opcode.TEXT if is_text else Opcode.BINARY
    return Frame(opcode, payload).serialize(mask=False, extensions=extensions)


def ours(is_text: bool, payload: bytes, window_bits: int) -> bytes:
    if window_bits:
        opcode = frames.TEXT if is_text else frames.BINARY
        return frames.frame(opcode, frames.deflate(payload, window_bits), compressed=True)
    return frames.text_frame(payload) if is_text else frames.binary_frame(payload)


@pytest.mark.parametrize("window_bits", [0, 9, 12, 15])
def test_frames_are_those_of_websockets_byte_for_byte(window_bits: int) -> None:
    for is_text, payload in messages(10_000, seed=window_bits):
        built = ours(is_text, payload, window_bits)
        assert type(built) is bytes
        assert built == as_websockets(is_text, payload, window_bits), payload[:100]


@pytest.mark.parametrize("window_bits", [0, 12])
def test_a_client_of_websockets_reads_them_all(window_bits: int) -> None:
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    if window_bits:
        client.extensions = [PerMessageDeflate(True, True, window_bits, 15)]
    sent = messages(2_000, seed=1)
    client.receive_data(b"".join(ours(*message, window_bits) for message in sent))
    events = client.events_received()
    assert [(event.opcode is Opcode.TEXT, bytes(event.data)) for event in events] == sent
    assert client.parser_exc is None


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("opcode", [frames.TEXT, frames.BINARY])
def test_the_general_function_agrees_with_the_fast_ones(opcode: int, size: int) -> None:
    payload = b"y" * size
    fast = frames.text_frame if opcode == frames.TEXT else frames.binary_frame
    assert frames.frame(opcode, payload) == fast(payload)


def test_the_payload_may_be_any_bytes_like_object() -> None:
    for kind in (bytes, bytearray, memoryview):
        assert frames.text_frame(kind(b"hello")) == b"\x81\x05hello"
        assert frames.binary_frame(kind(b"z" * 200)) == b"\x82\x7e\x00\xc8" + b"z" * 200


@pytest.mark.parametrize("bits", [-12, 0, 8, 16])
def test_a_window_that_zlib_or_the_standard_refuses_is_an_error(bits: int) -> None:
    with pytest.raises(ValueError, match="9 to 15"):
        frames.deflate(b"x", bits)


def test_threads_can_build_frames_at_the_same_time() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        some = messages(400, seed=3)
        expected = [ours(*message, 12) for message in some]
        with ThreadPoolExecutor(4) as pool:
            rounds = pool.map(lambda _: [ours(*message, 12) for message in some], range(8))
            assert all(built == expected for built in rounds)
    finally:
        sys.setswitchinterval(interval)
