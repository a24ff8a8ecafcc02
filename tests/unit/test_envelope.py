"""The envelope carries any payload and survives damage; its chain tells of every hole."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_sockets import envelope
from django_sockets.envelope import (
    HEADER_BYTES,
    Chain,
    NewerVersion,
    NotOurs,
    Publisher,
    unpack,
)


def with_extension(extension: bytes, payload: bytes = b"payload") -> bytes:
    header = Publisher().headers(["room"], False)[0]
    return header[:6] + struct.pack(">H", len(extension)) + header[8:] + extension + payload


@given(
    payload=st.binary(max_size=200),
    is_text=st.booleans(),
    origin=st.none() | st.binary(max_size=40),
    before=st.lists(st.sampled_from(["a", "b", "c"]), max_size=10),
)
def test_what_was_packed_comes_out_again(
    payload: bytes, is_text: bool, origin: bytes | None, before: list[str]
) -> None:
    publisher = Publisher()
    for channel in before:
        publisher.headers([channel], False)
    headers = publisher.headers(["a", "b"], is_text, origin)
    for i, (channel, header) in enumerate(zip("ab", headers, strict=True), start=1):
        earlier = [number for number, name in enumerate(before, start=1) if name == channel]
        assert unpack(header + payload) == (
            publisher.id,
            len(before) + i,
            earlier[-1] if earlier else 0,
            is_text,
            origin,
            payload,
        )


@given(st.data())
def test_a_cut_header_is_not_ours(data: st.DataObject) -> None:
    origin = data.draw(st.none() | st.binary(max_size=20))
    (header,) = Publisher().headers(["room"], True, origin)
    with pytest.raises(NotOurs):
        unpack(header[: data.draw(st.integers(0, len(header) - 1))])


@given(st.binary(max_size=100))
def test_other_programs_messages_are_not_ours(message: bytes) -> None:
    if not message.startswith(b"\xd7DS"):
        with pytest.raises(NotOurs):
            unpack(message)


@given(st.integers(0, 255).filter(lambda version: version != 1), st.binary(max_size=40))
def test_another_version_is_told_apart_whatever_follows(version: int, rest: bytes) -> None:
    with pytest.raises(NewerVersion):
        unpack(b"\xd7DS" + bytes([version]) + bytes(HEADER_BYTES - 4) + rest)


@given(st.binary(max_size=60))
def test_a_damaged_extension_is_refused_and_never_raises_anything_else(extension: bytes) -> None:
    try:
        *_, payload = unpack(with_extension(extension))
    except NotOurs:
        return
    assert payload == b"payload"


def test_extensions_of_later_versions_are_skipped() -> None:
    fields = b"\x63\x00\x02??" + b"\x01\x00\x03me!" + b"\x02\x00\x00"
    *_, origin, payload = unpack(with_extension(fields))
    assert (origin, payload) == (b"me!", b"payload")


def test_flags_of_later_versions_are_ignored() -> None:
    (header,) = Publisher().headers(["room"], True)
    *_, is_text, _, payload = unpack(header[:4] + b"\xff\xff" + header[6:] + b"x")
    assert (is_text, payload) == (True, b"x")


def test_publishers_have_ids_of_their_own() -> None:
    assert len({Publisher().id for _ in range(100)}) == 100


def test_a_publisher_forgets_channels_and_then_claims_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(envelope, "CHANNELS_REMEMBERED", 3)
    publisher = Publisher()

    def previous(channel: str) -> int:
        return unpack(publisher.headers([channel], False)[0])[2]

    assert [previous(c) for c in "abcab"] == [0, 0, 0, 1, 2]
    assert previous("d") == 0  # Pushes out c, which was used longest ago.
    assert [previous(c) for c in "abdc"] == [4, 5, 6, 0]


# The chain


class Model:
    """A publisher on a channel, from both ends: what it published, and what a reader was told."""

    def __init__(self, chain: Chain, name: bytes) -> None:
        self.chain = chain
        self.name = name
        self.delivered: list[int] = []
        self.told = True  # Nothing of before the first message is missed.

    def receive(self, counter: int, previous: int) -> None:
        verdict = self.chain.take(self.name, counter, previous)
        if verdict in (Chain.GAP, Chain.LATE):
            self.told = True
        if verdict in (Chain.DELIVER, Chain.GAP):
            last = self.delivered[-1] if self.delivered else 0
            assert counter > last, "delivered twice or late"
            assert self.told or counter == last + 1, f"{last + 1} to {counter} lost silently"
            self.delivered.append(counter)
            self.told = False


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 30))
def test_no_stream_gets_past_the_chain_in_disorder(seed: int, count: int) -> None:
    rng = random.Random(seed)
    chain = Chain()
    models = [Model(chain, name) for name in (b"p", b"q")]
    stream = [(model, counter, counter - 1) for counter in range(2, count + 2) for model in models]
    for _ in range(rng.randint(0, 8)):
        i = rng.randrange(len(stream) or 1)
        fault = rng.choice(("drop", "repeat", "move"))
        if not stream:
            break
        if fault == "drop":
            del stream[i]
        elif fault == "repeat":
            stream.insert(rng.randint(i, len(stream)), stream[i])
        else:
            stream.insert(rng.randint(0, len(stream)), stream.pop(i))
    for model in models:
        model.receive(1, 0)
    for model, counter, previous in stream:
        if rng.random() < 0.1:
            chain.resynchronised()
            for told in models:
                told.told = True
        model.receive(counter, previous)


def test_a_healthy_stream_of_many_publishers_has_no_gap() -> None:
    rng = random.Random(1)
    chain = Chain()
    last = dict.fromkeys(range(20), 0)
    for _ in range(5000):
        publisher = rng.randrange(20)
        counter = last[publisher] + rng.randint(1, 3)  # It publishes on other channels, too.
        assert chain.take(b"%d" % publisher, counter, last[publisher]) == Chain.DELIVER
        last[publisher] = counter


def test_more_publishers_than_are_remembered_cause_no_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(envelope, "PUBLISHERS_REMEMBERED", 3)
    chain = Chain()
    for counter in range(1, 50):
        for publisher in range(5):
            verdict = chain.take(b"%d" % publisher, counter, counter - 1)
            assert verdict == Chain.DELIVER


def test_what_precedes_the_first_message_seen_is_dropped_and_signalled_once() -> None:
    chain = Chain()
    assert chain.take(b"p", 5, 4) == Chain.DELIVER
    assert chain.take(b"p", 4, 3) == Chain.LATE
    assert chain.take(b"p", 4, 3) == Chain.DROP
    assert chain.take(b"p", 5, 4) == Chain.DROP
    assert chain.take(b"p", 6, 5) == Chain.DELIVER


def test_unknown_history_is_no_gap() -> None:
    chain = Chain()
    assert chain.take(b"p", 1, 0) == Chain.DELIVER
    assert chain.take(b"p", 9, 0) == Chain.DELIVER
    assert chain.take(b"p", 11, 10) == Chain.GAP


def test_what_a_gap_covers_already_is_signalled_no_second_time() -> None:
    chain = Chain()
    for publisher in (b"p", b"q"):
        assert chain.take(publisher, 1, 0) == Chain.DELIVER
    chain.resynchronised()
    for publisher in (b"p", b"q"):
        assert chain.take(publisher, 5, 4) == Chain.DELIVER
        assert chain.take(publisher, 1, 0) == Chain.DROP
        assert chain.take(publisher, 9, 8) == Chain.GAP
