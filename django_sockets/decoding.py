"""JSON text -> data, in time that is linear in the length of the text for any input.

The decoders run on the event loop, so the most expensive input of a client counts. `json.loads` is
linear for every input. msgspec is faster, with two exceptions for which this module uses
`json.loads`: msgspec takes 17 us for a float that its fast algorithm cannot round (50 times
`float`), and it reads an object again at each level if the tag of a nested union comes last.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["LARGE_CHARACTERS", "TypedDecoder", "decode_json"]

LARGE_CHARACTERS = 64 * 1024
"""Texts of this length and longer are decoded with the garbage collector paused. Otherwise it scans
the new objects again and again, which makes nested lists three times as slow."""
EXPONENTS_ALLOWED = 4
"""The numbers with an exponent that msgspec may read in a text. Each `CHARACTERS_PER_EXPONENT`
characters allow one more."""
CHARACTERS_PER_EXPONENT = 1024
_EXPONENT = re.compile(r"[0-9.][eE][+-]?[0-9]{2}")


def decode_json(text: str | bytes) -> Any:
    """Decode JSON text.

    NaN and Infinity are refused, because they are not JSON. A number that is too large for a float,
    such as 1e999, is refused, because it could not be encoded again.

    Raises:
        ValueError: the text is not JSON, the bytes are not UTF-8, or the nesting is too deep.
    """
    if not isinstance(text, str):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        if len(text) < LARGE_CHARACTERS:
            return _decode(text)
        with _collector_paused():
            return _decode(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


class TypedDecoder:
    """Decodes JSON text to a type that msgspec supports.

    Args:
        form: the type.

    Raises:
        TypeError, NameError: msgspec cannot decode the type.
    """

    def __init__(self, form: Any) -> None:
        self._form = form
        self._decode = msgspec.json.Decoder(form).decode
        self._recursive, self._has_floats = _traits(msgspec.inspect.type_info(form))

    def decode(self, text: str) -> Any:
        """Decode a text.

        Raises:
            msgspec.MsgspecError, ValueError: the text does not match the type, or is not JSON.
        """
        if len(text) >= LARGE_CHARACTERS:
            with _collector_paused():
                return self._decode_large(text)
        if self._has_floats and _has_many_exponents(text):
            return self.convert(decode_json(text))
        return self._decode(text)

    def _decode_large(self, text: str) -> Any:
        if self._recursive or (self._has_floats and _has_many_exponents(text)):
            return self.convert(decode_json(text))
        return self._decode(text)

    def convert(self, data: Any) -> Any:
        """Convert decoded data to the type.

        Raises:
            msgspec.ValidationError: the data does not match the type.
        """
        return msgspec.convert(data, self._form, str_keys=True)


def _has_many_exponents(text: str) -> bool:
    if _EXPONENT.search(text) is None:
        return False
    allowed = EXPONENTS_ALLOWED + len(text) // CHARACTERS_PER_EXPONENT
    return next(itertools.islice(_EXPONENT.finditer(text), allowed, None), None) is not None


def _traits(form: Any) -> tuple[bool, bool]:
    """Return whether a value may contain another of its type, and whether it may hold floats."""
    outer: list[int] = []
    done: set[int] = set()
    recursive = floats = False

    def visit(part: Any) -> None:
        nonlocal recursive, floats
        if isinstance(part, msgspec.inspect.Field):
            part = part.type
        if id(part) in outer:
            recursive = True
        if not isinstance(part, msgspec.inspect.Type) or id(part) in done:
            return
        if isinstance(part, (msgspec.inspect.FloatType, msgspec.inspect.AnyType)):
            floats = True
        done.add(id(part))
        outer.append(id(part))
        for name in part.__struct_fields__:
            inner = getattr(part, name)
            for one in inner if isinstance(inner, tuple) else (inner,):
                visit(one)
        outer.pop()

    visit(form)
    return recursive, floats


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number in the JSON is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_float).decode
