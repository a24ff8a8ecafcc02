"""JSON text -> data, in a time that is proportional to its length whatever a client sends.

The decoders run on the event loop, so the input that costs most counts, and not the usual one.
`json.loads` is linear in every input. msgspec is faster, with two exceptions that are handed to
`json.loads` here: it takes 17 us for a float that its fast algorithm cannot round (50 times
`float`), and it reads an object again at each level when the tag of a nested union comes last.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["LARGE_CHARACTERS", "TypedDecoder", "decode_json"]

LARGE_CHARACTERS = 64 * 1024
"""From here on a text is decoded without the garbage collector: it would go over what is being made
again and again, which makes nested lists three times as slow."""
EXPONENTS_ALLOWED = 4
"""Numbers with an exponent that msgspec may read in any text, and one more for each
`CHARACTERS_PER_EXPONENT`."""
CHARACTERS_PER_EXPONENT = 1024
_EXPONENT = re.compile(r"[0-9.][eE][+-]?[0-9]{2}")


def decode_json(text: str | bytes) -> Any:
    """Decode JSON from a frame; NaN and Infinity, which are not JSON, are refused.

    So is a number that would become infinite, such as 1e999: nobody could send it back.

    Raises:
        ValueError: it is not JSON (also for bytes that are not UTF-8, or nesting beyond reason).
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
    """JSON text -> a type that msgspec knows.

    Args:
        form: the type.

    Raises:
        TypeError, NameError: msgspec cannot decode it.
    """

    def __init__(self, form: Any) -> None:
        self._form = form
        self._decode = msgspec.json.Decoder(form).decode
        self._recursive, self._has_floats = _traits(msgspec.inspect.type_info(form))

    def decode(self, text: str) -> Any:
        """Decode a text.

        Raises:
            msgspec.MsgspecError, ValueError: it does not fit, or is not JSON.
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
        """Make the type of data that has been decoded already.

        Raises:
            msgspec.ValidationError: it does not fit.
        """
        return msgspec.convert(data, self._form, str_keys=True)


def _has_many_exponents(text: str) -> bool:
    if _EXPONENT.search(text) is None:
        return False
    allowed = EXPONENTS_ALLOWED + len(text) // CHARACTERS_PER_EXPONENT
    return next(itertools.islice(_EXPONENT.finditer(text), allowed, None), None) is not None


def _traits(form: Any) -> tuple[bool, bool]:
    """Whether a value may contain another one of its own type, and whether floats."""
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


def _finite(text: str) -> float:
    number = float(text)
    if number - number:  # NaN for an infinite one. The quickest of the ways to ask.
        raise ValueError("a number in the JSON is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
