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
        self._recursive = _is_recursive(msgspec.inspect.type_info(form))

    def decode(self, text: str) -> Any:
        """Decode a text.

        Raises:
            msgspec.MsgspecError, ValueError: it does not fit, or is not JSON.
        """
        large = len(text) >= LARGE_CHARACTERS
        with _collector_paused() if large else _NOTHING:
            if (large and self._recursive) or _has_many_exponents(text):
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


def _is_recursive(form: Any) -> bool:
    """Whether a value of a type may contain another one of the same type."""
    outer: list[int] = []
    done: set[int] = set()

    def visit(part: Any) -> bool:
        if isinstance(part, msgspec.inspect.Field):
            part = part.type
        if id(part) in outer:
            return True
        if not isinstance(part, msgspec.inspect.Type) or id(part) in done:
            return False
        outer.append(id(part))
        inner = [getattr(part, name) for name in part.__struct_fields__]
        found = any(any(map(visit, one)) if isinstance(one, tuple) else visit(one) for one in inner)
        done.add(outer.pop())
        return found

    return visit(form)


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


_NOTHING = contextlib.nullcontext()


def _finite(text: str) -> float:
    number = float(text)
    if number - number:  # NaN for an infinite one. The quickest of the ways to ask.
        raise ValueError("a number in the JSON is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
