"""What may be broadcast, and the very text that clients get."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
from typing import Any

import pytest
from django.utils.functional import lazystr
from django.utils.safestring import SafeString, mark_safe
from hypothesis import given
from hypothesis import strategies as st

from django_sockets import EncodeError
from django_sockets.codec import Delivery, decode_json, encode, encode_json, send_event


class Colour(enum.Enum):
    RED = "red"


class Text(str, enum.Enum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: int
    at: datetime.date


@dataclasses.dataclass(frozen=True)
class Line:
    points: list[Point]


Pair = collections.namedtuple("Pair", "left right")
DAY = datetime.date(2030, 1, 2)
NOON = datetime.datetime(2030, 1, 2, 12, 0, 0, 5, tzinfo=datetime.timezone.utc)
UUID = uuid.UUID(int=7)

TABLE: list[tuple[Any, str]] = [
    # What json.dumps takes, in its own words.
    (None, "null"),
    (True, "true"),
    (0, "0"),
    (-1.5, "-1.5"),
    (1e100, "1e+100"),
    (2**70, str(2**70)),
    ("", '""'),
    ('a"b\\c\n\x00', '"a\\"b\\\\c\\n\\u0000"'),
    ([], "[]"),
    ({}, "{}"),
    ([1, 2, [3]], "[1, 2, [3]]"),
    ((1, 2), "[1, 2]"),
    ({"a": 1, "b": [True, None]}, '{"a": 1, "b": [true, null]}'),
    ({7: "a", 2.5: "b", None: "c", True: "d"}, '{"7": "a", "2.5": "b", "null": "c", "true": "d"}'),
    (Pair(1, "r"), '[1, "r"]'),
    (collections.OrderedDict(b=1, a=2), '{"b": 1, "a": 2}'),
    (Number.ONE, "1"),
    (Text.A, '"a"'),
    # Not escaped, because the text goes out as UTF-8.
    ("é € 🦊", '"é € 🦊"'),
    ({"ключ": "值"}, '{"ключ": "值"}'),
    ("</script>\u2028", '"</script>\u2028"'),
    # A lone surrogate has no UTF-8, but an escape.
    ("a\ud83d", '"a\\ud83d"'),
    ({"é\udc80": "é"}, '{"\\u00e9\\udc80": "\\u00e9"}'),
    # Django's strings.
    (SafeString("<b>"), '"<b>"'),
    ({mark_safe("k"): [mark_safe("<i>")]}, '{"k": ["<i>"]}'),
    (lazystr("später"), '"später"'),
    ({lazystr("k"): lazystr("v")}, '{"k": "v"}'),
    # What json.dumps refuses and everybody sends.
    (NOON, '"2030-01-02T12:00:00.000005+00:00"'),
    (DAY, '"2030-01-02"'),
    (datetime.time(12, 30), '"12:30:00"'),
    (UUID, f'"{UUID}"'),
    (decimal.Decimal("1.10"), '"1.10"'),
    (Colour.RED, '"red"'),
    (Point(1, DAY), '{"x": 1, "at": "2030-01-02"}'),
    (Line([Point(1, DAY)]), '{"points": [{"x": 1, "at": "2030-01-02"}]}'),
    (
        {"p": Point(1, DAY), "n": [UUID]},
        f'{{"p": {{"x": 1, "at": "2030-01-02"}}, "n": ["{UUID}"]}}',
    ),
    ({UUID: 1}, f'{{"{UUID}": 1}}'),
    ({DAY: {Colour.RED: Point(1, DAY)}}, '{"2030-01-02": {"red": {"x": 1, "at": "2030-01-02"}}}'),
    ([{decimal.Decimal("1.0"): (1,)}], '[{"1.0": [1]}]'),
    (Line([{UUID: Pair(1, 2)}]), f'{{"points": [{{"{UUID}": [1, 2]}}]}}'),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("data", "text"), TABLE, ids=[ascii(row[0])[:40] for row in TABLE])
def test_the_text_is_the_one_in_the_table(data: Any, text: str) -> None:
    assert encode_json(data) == text
    payload, is_text = encode(data)
    assert (payload, is_text) == (text.encode(), True)
    json.loads(payload)


def cycle() -> list[Any]:
    loop: list[Any] = []
    loop.append({"again": loop})
    return loop


def cycle_with_odd_key() -> dict[Any, Any]:
    loop: dict[Any, Any] = {UUID: 1}
    loop["again"] = loop
    return loop


def deep() -> list[Any]:
    data: list[Any] = []
    for _ in range(100_000):
        data = [data]
    return data


REFUSED: list[tuple[Any, str]] = [
    (float("nan"), "float cannot be sent as JSON: Out of range float"),
    ([float("inf")], "list cannot be sent as JSON: Out of range float"),
    ({"a": -float("inf")}, "Out of range float"),
    ({float("nan"): 1}, "Out of range float"),
    ({1, 2}, "set cannot be sent as JSON: set has no JSON form"),
    (object(), "object has no JSON form. Send dicts, lists, text, numbers"),
    ({"a": b"bytes"}, "bytes has no JSON form. .* or bytes for a binary frame"),
    (Point, "type has no JSON form"),
    (1j, "complex has no JSON form"),
    ({(1, 2): 3}, "tuple has no JSON form"),
    ({b"k": 3}, "bytes has no JSON form"),
    (datetime.timedelta(1), "timedelta has no JSON form"),
    (iter([1]), "has no JSON form"),
    (cycle(), "Circular reference"),
    (cycle_with_odd_key(), "nested too deeply"),
    (deep(), "nested too deeply"),
]


@pytest.mark.parametrize(("data", "problem"), REFUSED, ids=[row[1][:40] for row in REFUSED])
def test_what_has_no_json_form_is_refused_with_what_to_do(data: Any, problem: str) -> None:
    with pytest.raises(EncodeError, match=problem) as refused:
        encode(data)
    assert "Send dicts, lists, text, numbers, booleans or None; or bytes" in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_any_json_is_what_json_dumps_makes_of_it_and_comes_back(data: Any) -> None:
    text = encode_json(data)
    assert text == json.dumps(data, ensure_ascii=False)
    assert decode_json(text.encode()) == data


@pytest.mark.parametrize("data", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_are_a_binary_frame(data: Any) -> None:
    assert encode(data) == (b"\x00\xff", False)


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", "-Infinity", b"\xff", "[" * 100_000, "{'a': 1}"]
)
def test_what_is_not_json_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"Expecting|not JSON|decode|nested"):
        decode_json(text)


@pytest.mark.parametrize(
    "text", ["1e999", "[-1e999]", '{"a": [1.0, 1E+309]}', b"1.8e308", "9" * 400 + ".0"]
)
def test_a_number_that_would_become_infinite_is_refused(text: Any) -> None:
    """Decoded, it is no JSON any more: whoever answers with it would fail instead of the client."""
    with pytest.raises(ValueError, match="too large"):
        decode_json(text)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(16, 40))
def test_every_finite_number_is_read_as_python_reads_it(number: float, digits: int) -> None:
    for text in (repr(number), f"{number:.{digits}e}", f"{number:.{digits}f}"):
        read = decode_json(text)
        assert type(read) is float
        assert (read, math.copysign(1, read)) == (float(text), math.copysign(1, number))


@pytest.mark.parametrize(
    "text",
    ["1.7976931348623157e308", "5e-324", "1e-999", "-0.0", "0e999", "1" + "0" * 400 + "e-390"],
)
def test_numbers_at_the_edges_are_numbers(text: str) -> None:
    assert decode_json(f"[{text}]") == [float(text)]


def test_a_delivery_is_made_into_a_frame_and_decoded_once_for_all_sockets() -> None:
    delivery = Delivery("room", '{"a": "é"}'.encode(), True)
    assert delivery.event() == {"type": "websocket.send", "text": '{"a": "é"}'}
    assert delivery.event() is delivery.event()
    assert delivery.data() == {"a": "é"}
    assert delivery.data() is delivery.data()
    made: list[object] = []

    def encoder(data: object) -> bytes:
        made.append(data)
        return b"encoded"

    for _ in range(3):
        assert delivery.event_by(encoder, True) == {"type": "websocket.send", "bytes": b"encoded"}
    assert made == [{"a": "é"}]


def test_a_binary_delivery_stays_bytes() -> None:
    delivery = Delivery("room", b"\xff", False)
    assert delivery.event() == {"type": "websocket.send", "bytes": b"\xff"}
    assert delivery.data() == b"\xff"


def test_what_an_encoder_returns_decides_the_frame() -> None:
    assert send_event("é") == {"type": "websocket.send", "text": "é"}
    assert send_event("é", is_bytes=True) == {"type": "websocket.send", "bytes": "é".encode()}
    assert send_event(bytearray(b"x")) == {"type": "websocket.send", "bytes": b"x"}
