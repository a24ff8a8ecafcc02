"""The data that can be broadcast, and the exact text that clients get."""

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

import attrs
import msgspec
import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.utils.dateparse import parse_duration
from django.utils.functional import lazystr
from django.utils.safestring import SafeString, mark_safe
from hypothesis import given
from hypothesis import strategies as st

from django_sockets import EncodeError
from django_sockets.codec import decode_json, encode, encode_json, send_event
from django_sockets.delivery.message import Delivery


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


@attrs.frozen
class Place:
    name: str
    open_for: datetime.timedelta


class Said(msgspec.Struct):
    text: str
    at: datetime.datetime | None = None


class Renamed(msgspec.Struct, rename="camel"):
    first_name: str
    other: Any = None


class Tagged(msgspec.Struct, tag="moved", tag_field="type"):
    to: Point


class Numbered(msgspec.Struct, tag=7):
    pass


class Sparse(msgspec.Struct, omit_defaults=True):
    a: int = 1
    b: list[int] = []
    c: str | None = None
    d: int | msgspec.UnsetType = msgspec.UNSET


class Unset(msgspec.Struct):
    a: int | msgspec.UnsetType = msgspec.UNSET
    b: int | None = None


class Row(msgspec.Struct, array_like=True, frozen=True):
    a: int
    b: Any


class TaggedRow(msgspec.Struct, array_like=True, tag=True):
    a: int


Pair = collections.namedtuple("Pair", "left right")
DAY = datetime.date(2030, 1, 2)
NOON = datetime.datetime(2030, 1, 2, 12, 0, 0, 5, tzinfo=datetime.timezone.utc)
UUID = uuid.UUID(int=7)
SAID = '{"text": "b", "at": null}'

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
    # Common types that json.dumps refuses.
    (NOON, '"2030-01-02T12:00:00.000005+00:00"'),
    (DAY, '"2030-01-02"'),
    (datetime.time(12, 30), '"12:30:00"'),
    (UUID, f'"{UUID}"'),
    (decimal.Decimal("1.10"), '"1.10"'),
    (Colour.RED, '"red"'),
    (Point(1, DAY), '{"x": 1, "at": "2030-01-02"}'),
    (Line([Point(1, DAY)]), '{"points": [{"x": 1, "at": "2030-01-02"}]}'),
    # Durations as Django's encoder writes them.
    (datetime.timedelta(days=1, hours=2, minutes=3, seconds=4), '"P1DT02H03M04S"'),
    (datetime.timedelta(0), '"P0DT00H00M00S"'),
    (datetime.timedelta(microseconds=5), '"P0DT00H00M00.000005S"'),
    (-datetime.timedelta(hours=1, microseconds=1), '"-P0DT01H00M00.000001S"'),
    ({datetime.timedelta(1): 1}, '{"P1DT00H00M00S": 1}'),
    # Structs and attrs classes.
    (Said("é"), '{"text": "é", "at": null}'),
    (Said(SafeString("<b>"), NOON), '{"text": "<b>", "at": "2030-01-02T12:00:00.000005+00:00"}'),
    (Renamed("ann"), '{"firstName": "ann", "other": null}'),
    (Renamed("a", {UUID: Said("b")}), f'{{"firstName": "a", "other": {{"{UUID}": {SAID}}}}}'),
    (Tagged(Point(1, DAY)), '{"type": "moved", "to": {"x": 1, "at": "2030-01-02"}}'),
    (Numbered(), '{"type": 7}'),
    (Sparse(), "{}"),
    (Sparse(2, [3], "c", 4), '{"a": 2, "b": [3], "c": "c", "d": 4}'),
    (Unset(), '{"b": null}'),
    ([Row(1, Row(2, lazystr("x")))], '[[1, [2, "x"]]]'),
    (TaggedRow(1), '["TaggedRow", 1]'),
    ({"said": [Said("b")]}, f'{{"said": [{SAID}]}}'),
    (Place("here", datetime.timedelta(1)), '{"name": "here", "open_for": "P1DT00H00M00S"}'),
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


@given(st.timedeltas())
def test_a_duration_is_written_as_django_writes_it(duration: datetime.timedelta) -> None:
    text = json.loads(encode_json(duration))
    assert text == json.loads(json.dumps(duration, cls=DjangoJSONEncoder))
    assert parse_duration(text) == duration


STRUCTS = [row[0] for row in TABLE if isinstance(row[0], msgspec.Struct)]


@pytest.mark.parametrize("struct", STRUCTS, ids=repr)
def test_a_struct_is_what_msgspec_makes_of_it(struct: msgspec.Struct) -> None:
    """So that a receiver decodes it to the same type, and a TypeScript type fits both."""
    try:
        expected = msgspec.json.encode(struct)
    except TypeError:
        pytest.skip("msgspec cannot encode what is inside")
    ours = json.loads(encode_json(struct))
    assert ours == json.loads(expected.replace(b"000005Z", b"000005+00:00"))


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
    (Said(b"bytes"), "Said cannot be sent as JSON: bytes has no JSON form"),  # type: ignore[arg-type]
    (Renamed("a", float("nan")), "Out of range float"),
    (Said, "StructMeta has no JSON form"),
    ({Row(1, 2): 1}, "unhashable type"),
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
    """Its decoded value has no JSON form: a handler that sends it back would fail."""
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
