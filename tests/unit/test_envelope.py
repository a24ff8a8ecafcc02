"""The envelope carries any payload and survives damage; a publisher remembers its channels."""

from __future__ import annotations

import random
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_sockets.delivery.envelope import (
    HEADER_BYTES,
    IS_TEXT,
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
        name, counter, previous, age_us, *rest = unpack(header + payload)
        assert (name, counter, previous) == (
            publisher.id,
            len(before) + i,
            earlier[-1] if earlier else 0,
        )
        assert (age_us is not None) == bool(earlier)
        assert rest == [is_text, origin, payload]


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
    *_, flags, _, payload = unpack(header[:4] + b"\xff\xff" + header[6:] + b"x")
    assert (flags & IS_TEXT, payload) == (IS_TEXT, b"x")


def test_publishers_have_ids_of_their_own() -> None:
    assert len({Publisher().id for _ in range(100)}) == 100


def previous_and_age(publisher: Publisher, channel: str) -> tuple[int, int | None]:
    _, _, previous, age_us, *_ = unpack(publisher.headers([channel], False)[0])
    return previous, age_us


@pytest.mark.parametrize("origin", [None, b"12345678"])
def test_a_message_says_how_long_ago_the_one_before_it_was(
    origin: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    publisher = Publisher()

    def age_us() -> int | None:
        return unpack(publisher.headers(["room"], False, origin)[0])[3]

    assert age_us() is None
    for seconds in (0.0, 0.0015, 2.0, 90 * 86400.0):
        now[0] += seconds
        age = age_us()
        assert age is not None
        assert seconds * 1e6 - 1 <= age <= seconds * 1e6


def test_a_publisher_forgets_channels_and_then_claims_nothing() -> None:
    publisher = Publisher(channels_remembered=3)
    assert [previous_and_age(publisher, c)[0] for c in "abcab"] == [0, 0, 0, 1, 2]
    assert previous_and_age(publisher, "d") == (0, None)  # Pushes out one of the others.
    remembered = [previous_and_age(publisher, c)[0] for c in "d"]
    assert remembered == [6]
    counters = {"a": 4, "b": 5, "c": 3}
    # Each is either told as it was or unknown; asking for one may push out another.
    for channel, counter in counters.items():
        assert previous_and_age(publisher, channel)[0] in (0, counter)


def test_more_channels_than_are_remembered_do_not_switch_the_chain_off() -> None:
    publisher = Publisher(channels_remembered=500)
    names = [f"room:{number}" for number in range(1000)]
    for name in names * 3:
        publisher.headers([name], False)
    told = sum(previous_and_age(publisher, name)[0] > 0 for name in names)
    assert told > 100  # 203 on average; in turns it would be none.


def test_a_header_costs_the_same_beyond_the_remembered_channels() -> None:
    def seconds(publisher: Publisher, names: list[str]) -> float:
        best = float("inf")
        for start in range(0, len(names), 1000):
            began = time.thread_time()
            for name in names[start : start + 1000]:
                publisher.headers([name], False)
            best = min(best, time.thread_time() - began)
        return best

    names = [f"room:{number}" for number in range(20_000)]
    within = seconds(Publisher(20_000), names)
    full = Publisher(10_000)
    seconds(full, names)
    assert seconds(full, names) < 5 * within


def test_a_publisher_leaves_the_random_numbers_of_the_application_alone() -> None:
    random.seed(1)
    before = random.getstate()
    publisher = Publisher(channels_remembered=2)
    for number in range(20):
        publisher.headers([f"room-{number}"], True)
    assert random.getstate() == before
