"""The time to decode a frame depends on its length, not on its content."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import time
import uuid
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from django_sockets import decoding
from django_sockets.codec import decode_json, encode_json
from django_sockets.decoding import TypedDecoder
from django_sockets.delivery.message import Delivery

MIB = 1024 * 1024
SIZE = MIB // 4
SECONDS_PER_MIB = 0.4
"""Far above what is measured (at most 0.1 s on a busy machine), far below what it was (2.4 s)."""


def filled(unit: str, before: str = "[", after: str = "]") -> str:
    return before + ",".join([unit] * ((SIZE - 2) // (len(unit) + 1))) + after


def halfway(exponent: int, digits: int) -> str:
    """The first digits of a number between two floats: they cannot be told apart quickly."""
    number = float(f"1.2345678901234567e{exponent}")
    _, power = math.frexp(number)
    middle = Fraction(number) + Fraction(2) ** (power - 54)
    scaled = middle / Fraction(10) ** exponent * 10 ** (digits - 1)
    return f"{Decimal(int(scaled)).scaleb(1 - digits)}e{exponent}"


def tag_last(depth: int) -> str:
    """Nested objects, the tag of each one behind what it contains."""
    leaf = '{"x":1,"pad":"' + "a" * (SIZE - 40 * depth) + '","type":"Leaf"}'
    return '{"child":' * depth + leaf + ',"type":"Node"}' * depth


NESTED = 900
WORST = {
    "float large": filled("1.1e300"),
    "float largest": filled("1.7976931348623157e308"),
    "float shortest": filled("1e300"),
    "float small": filled("1.1e-300"),
    "float smallest": filled("5e-324"),
    "float below the smallest": filled("1e-400"),
    "float denormal": filled("2.2250738585072011e-308"),
    "float halfway": filled("9007199254740993.0"),
    "float halfway large": filled(halfway(300, 20)),
    "float halfway middling": filled(halfway(100, 20)),
    "float halfway small": filled(halfway(-300, 20)),
    "float of 800 digits": filled(halfway(280, 800)),
    "float with large padding": filled("1" * 300 + ".5"),
    "float with zeros": filled("0." + "0" * 290 + "12345678901234567891"),
    "float simple": filled("1.5"),
    "float of one number": "0." + "1" * (SIZE - 2),
    "float exponent of one number": "1e" + "0" * (SIZE - 3) + "1",
    "int": filled("1"),
    "int of 4300 digits": filled("9" * 4300),
    "int of one number": "9" * SIZE,
    "empty lists": filled("[]"),
    "nested lists": filled("[[]]"),
    "deep lists": filled("[" * NESTED + "]" * NESTED),
    "deeper than allowed": "[" * SIZE,
    "empty objects": filled("{}"),
    "small objects": filled('{"a":1}'),
    "deep objects": filled('{"":' * NESTED + "1" + "}" * NESTED),
    "one key again and again": filled('"a":1', "{", "}"),
    "many keys": "{" + ",".join(f'"{number}":1' for number in range(24_000)) + "}",
    "empty strings": filled('""'),
    "escapes": '"' + "\\n" * (SIZE // 2 - 1) + '"',
    "long escapes": '"' + "\\u0041" * (SIZE // 6) + '"',
    "lone surrogates": '"' + "\\ud800" * (SIZE // 6) + '"',
    "small strings outside ASCII": filled('"\U0001f600"'),
    "white space": " " * (SIZE - 1) + "1",
    "line feeds and nothing": "\n" * SIZE,
    "wrong at the end": filled("1")[:-1] + "x",
    "unclosed string": '"' + "a" * SIZE,
    "infinite at the end": filled("1.5")[:-1] + ",1e999]",
}


class Leaf(msgspec.Struct, tag=True):
    x: int


class Node(msgspec.Struct, tag=True):
    child: Node | Leaf


class Point(msgspec.Struct):
    x: float = 0
    y: Any = None


TYPED: dict[str, tuple[Any, str]] = {
    **{name: (list[float], text) for name, text in WORST.items() if name.startswith("float")},
    "any": (Any, WORST["float large"]),
    "float in a field": (Point, f'{{"x":1,"y":{WORST["float large"]}}}'),
    "float in an unknown field": (Point, f'{{"z":{WORST["float large"]}}}'),
    "float in fields": (list[Point], filled('{"x":1.1e300}')),
    "tag last": (Node | Leaf, tag_last(800)),
    "deep lists": (Any, WORST["deep lists"]),
    "objects": (list[Point], filled('{"x":1}')),
    "uuids": (list[uuid.UUID], filled(f'"{uuid.uuid4()}"')),
    "decimals": (list[Decimal], filled("1e300")),
}


def seconds(call: Callable[[str], Any], text: str) -> float:
    """CPU seconds, which other processes hardly change."""
    before = time.thread_time()
    with contextlib.suppress(ValueError, RecursionError):
        call(text)
    return time.thread_time() - before


def check_cost(call: Callable[[str], Any], text: str) -> None:
    # Measured: at most 3 times; msgspec's own decoder takes 60 times for a float, and 300 times
    # for the nested tags.
    for last in (False, False, True):
        cost, reference = seconds(call, text), seconds(json.loads, text)
        if cost < min(SECONDS_PER_MIB * len(text) / MIB, 8 * reference + 0.01):
            return
        assert not last, (cost, reference)


@pytest.mark.parametrize("name", WORST)
def test_a_mebibyte_of_json_is_decoded_in_the_time_of_json_loads(name: str) -> None:
    check_cost(decode_json, WORST[name])


@pytest.mark.parametrize("name", TYPED)
def test_a_mebibyte_is_decoded_into_a_type_in_the_time_of_json_loads(name: str) -> None:
    form, text = TYPED[name]
    check_cost(TypedDecoder(form).decode, text)


@pytest.mark.parametrize("unit", ["1.1e300", "5e-324", '{"x":1.1e300}'])
def test_many_short_frames_cost_no_more_than_a_long_one(unit: str) -> None:
    """A frame of 4 KiB holds the loop for a 256th of what a mebibyte may."""
    form = list[Point] if "x" in unit else list[float]
    text = "[" + ",".join([unit] * (4096 // (len(unit) + 1))) + "]"
    decode = TypedDecoder(form).decode

    def often(_: str) -> None:
        for _ in range(64):
            decode(text)

    assert min(seconds(often, text) for _ in range(3)) < SECONDS_PER_MIB * 64 * 4096 / MIB


def test_a_broadcast_is_decoded_as_quickly() -> None:
    text = WORST["float large"]

    def received(_: str) -> None:
        Delivery("room", text.encode(), True).data()

    check_cost(received, text)


def test_text_outside_ascii_is_encoded_without_a_look_at_each_character() -> None:
    """Measured: 1 ms a mebibyte; a loop over the characters took 40 ms."""
    text = "a" * 4 * MIB + "\u20ac"
    assert min(seconds(encode_json, text) for _ in range(3)) < 0.06


NUMBERS = ["0.1", "1e5", "1.1e300", "-1.1E+300", "5e-324", "1e-400", "1.7976931348623157e308",
           halfway(300, 20), halfway(-300, 25), halfway(0, 20), "9007199254740993.0"]  # fmt: skip


@pytest.mark.parametrize("count", [1, 5000], ids=["one", "many"])
@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_are_read_as_python_reads_them(number: str, count: int) -> None:
    text = "[" + ",".join([number] * count) + "]"
    expected = json.loads(text)
    assert decode_json(text) == expected
    assert TypedDecoder(list[float]).decode(text) == expected


@pytest.mark.parametrize("count", [1, 20_000], ids=["one", "many"])
@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400 + ".0", "NaN", "-Infinity"])
def test_what_is_not_finite_is_refused(number: str, count: int) -> None:
    text = "[" + ",".join(["1e300"] * count + [number]) + "]"
    for decode in (decode_json, TypedDecoder(list[float]).decode):
        with pytest.raises(ValueError, match=r".+"):
            decode(text)


DATA = [
    (dict[int, list[float]], '{"1": [1e300, 2.5]}', {1: [1e300, 2.5]}),
    (Node | Leaf, '{"child": {"x": 1, "type": "Leaf"}, "type": "Node"}', Node(Leaf(1))),
    (Point, '{"x": 1, "y": {"a": "b"}}', Point(1, {"a": "b"})),
    (list[uuid.UUID], '["00000000-0000-0000-0000-000000000001"]', [uuid.UUID(int=1)]),
    (bytes, '"AAE="', b"\x00\x01"),
]


@pytest.mark.parametrize(("form", "text", "expected"), DATA)
def test_both_ways_lead_to_the_same_data(form: Any, text: str, expected: Any) -> None:
    decoder = TypedDecoder(form)
    # White space and floats decide on the way, and neither of them is seen in the data.
    crowded = TypedDecoder(tuple[form, list[float]]).decode(f"[{text}, {filled('1e300')}]")
    padded = decoder.decode(text + " " * decoding.LARGE_CHARACTERS)
    assert decoder.decode(text) == padded == crowded[0] == expected


def test_what_does_not_fit_is_told_in_the_same_words() -> None:
    decoder = TypedDecoder(list[Point])
    problems = []
    for more in ("", ',{"x":1e300}' * 5000):
        with pytest.raises(msgspec.ValidationError) as caught:
            decoder.decode('[{"x":"a"}' + more + "]")
        problems.append(str(caught.value))
    assert problems == ["Expected `float`, got `str` - at `$[0].x`"] * 2


def test_data_of_another_decoder_may_have_other_keys_than_text() -> None:
    assert TypedDecoder(dict[int, str]).convert({1: "a"}) == {1: "a"}


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    try:
        if not enabled:
            gc.disable()
        for text in (filled("[]"), filled("[]")[:-1], "[1]"):
            with contextlib.suppress(ValueError):
                decode_json(text)
            assert gc.isenabled() is enabled
    finally:
        gc.enable()
