"""Typed messages: frames are decoded to declared types and passed to the method of their type.

    class Said(msgspec.Struct):
        text: str

    class Chat(BaseSocketServer):
        answer_invalid = True

        @on("chat.message")
        async def said(self, message: Said):  # {"type": "chat.message", "text": "hello"}
            await self.async_broadcast("lobby", {"text": message.text})

The module does not import the socket classes. They ask `Dispatch` which method takes a frame.
"""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from .decoding import TypedDecoder, decode_json
from .errors import ConfigurationError

__all__ = ["Dispatch", "invalid_message", "invalid_text", "message_id", "on", "taken_types"]

Method = TypeVar("Method", bound=Callable[..., Any])
Frame = str | bytes

_MARK = "django_sockets_on"
MAX_MESSAGE_CHARACTERS = 500
"""Length of the text in an answer to an invalid message. The text may quote the client."""


def on(*types: str) -> Callable[[Method], Method]:
    """Decorate a method, `def` or `async def`, that takes the frames of these types.

    A frame has the form `{"type": "chat.message", ...}`. The parameter of the method receives the
    whole frame, validated against the annotation: a msgspec Struct, a dataclass, a TypedDict, or
    another type that msgspec decodes. Without an annotation it is a dict. The method may have no
    parameter. Its result is the reply to a request of the protocol `django-sockets.v1`. A method
    that overrides it in a subclass takes the same frames, unless it has its own `@on`.
    """
    if not types or not all(isinstance(one, str) for one in types):
        raise ConfigurationError('@on needs the type of the messages, as in @on("chat.message")')

    def mark(method: Method) -> Method:
        setattr(method, _MARK, (*types, *getattr(method, _MARK, ())))
        return method

    return mark


def taken_types(cls: type) -> dict[str, str]:
    """Message type -> name of the method that takes it.

    Raises:
        ConfigurationError: two methods take the same type.
    """
    marks: dict[str, tuple[str, ...]] = {}
    for owner in reversed(cls.__mro__):
        for name, value in vars(owner).items():
            types = getattr(value, _MARK, None)
            if isinstance(types, tuple):
                marks[name] = types
            elif name in marks and not callable(value):
                del marks[name]  # A subclass has removed it, as in `said = None`.
    methods: dict[str, str] = {}
    for name, types in marks.items():
        for one in dict.fromkeys(types):
            if one in methods:
                raise ConfigurationError(
                    f"{cls.__name__}.{methods[one]} and {cls.__name__}.{name} both take messages "
                    f"of type {one!r}: remove one, or let one override the other by its name"
                )
            methods[one] = name
    return methods


class _Head(msgspec.Struct):
    type: str


_read_head = msgspec.json.Decoder(_Head).decode


class _Form:
    """Converts a frame to the argument of one method, or of `receive`."""

    def __init__(self, form: Any) -> None:
        self._typed = None if form is None else TypedDecoder(form)

    def of_text(self, text: str) -> Any:
        return decode_json(text) if self._typed is None else self._typed.decode(text)

    def of_data(self, data: Any) -> Any:
        return data if self._typed is None else self._typed.convert(data)


class _Taker(NamedTuple):
    name: str
    form: _Form | None
    """None for a method without a parameter."""


class Dispatch:
    """Selects the method for each frame of one class. Made once for each class.

    Args:
        cls: the class. Its `message_type` is the type for `receive`; None for plain data.
        receives: True if the class has its own `receive`.

    Raises:
        ConfigurationError: an annotation cannot be resolved, or msgspec cannot decode it.
    """

    def __init__(self, cls: type, receives: bool) -> None:
        message_type = getattr(cls, "message_type", None)
        takers = taken_types(cls)
        self._plain = message_type is None and not takers
        self._receives = receives or not takers
        self._rest = _Taker("receive", _form(message_type, f"{cls.__name__}.message_type"))
        made = {name: _taker(cls, name) for name in set(takers.values())}
        self._takers = {one: made[name] for one, name in takers.items()}

    def read(
        self, frame: Frame, decoder: Callable[[Any], Any] | None
    ) -> tuple[str, tuple[Any, ...]]:
        """The name of the method that takes a frame, and its arguments.

        Args:
            decoder: the decoder of the class, from a frame to data; None for JSON.

        Raises:
            msgspec.MsgspecError: the frame does not match its type.
            Exception: the frame cannot be decoded.
        """
        if self._plain:
            return "receive", ((decoder or decode_json)(frame),)
        if decoder is not None:
            data = decoder(frame)
            taker = self._pick(data.get("type") if isinstance(data, Mapping) else None)
            return taker.name, () if taker.form is None else (taker.form.of_data(data),)
        # msgspec does not check the encoding of fields that it skips.
        text = frame if isinstance(frame, str) else frame.decode()
        taker = self._pick(self._type_of(text))
        if taker.form is None:
            decode_json(text)
            return taker.name, ()
        return taker.name, (taker.form.of_text(text),)

    def _type_of(self, text: str) -> str | None:
        if not self._takers:
            return None
        try:
            return _read_head(text).type
        except msgspec.ValidationError:
            if not self._receives:
                raise
            return None  # Not an object, or an object without a type, goes to `receive`.

    def _pick(self, kind: object) -> _Taker:
        taker = self._takers.get(kind) if isinstance(kind, str) else None
        if taker is not None:
            return taker
        if not self._receives:
            raise msgspec.ValidationError(f"Invalid value {kind!r} - at `$.type`")
        return self._rest


def _taker(cls: type, name: str) -> _Taker:
    method = getattr(cls, name)
    where = f"{cls.__name__}.{name}"
    parameters = list(inspect.signature(method).parameters.values())[1:]
    if sum(one.default is one.empty and one.kind != one.VAR_KEYWORD for one in parameters) > 1:
        raise ConfigurationError(f"{where} takes several arguments: @on gives it one, the message")
    if not parameters:
        return _Taker(name, None)
    try:
        hints = typing.get_type_hints(method, localns=dict(vars(cls)), include_extras=True)
    except NameError as exc:
        raise ConfigurationError(
            f"an annotation of {where} cannot be resolved ({exc}): define it at the top level of "
            "its module, outside `if TYPE_CHECKING`"
        ) from exc
    return _Taker(name, _form(hints.get(parameters[0].name), where))


def _form(form: Any, where: str) -> _Form:
    try:
        return _Form(form)
    except (TypeError, NameError) as exc:
        raise ConfigurationError(f"{where}: msgspec cannot decode {form!r}: {exc}") from exc


def message_id(frame: Frame, decoder: Callable[[Any], Any] | None) -> str | int | float | None:
    """The `id` of an invalid message. The answer repeats it to identify the message.

    Returns:
        A number, or a text of at most `MAX_MESSAGE_CHARACTERS`; None if there is no such `id`.
    """
    try:
        # `json.loads` is lenient: the id is valid even if another field holds NaN.
        data = json.loads(frame) if decoder is None else decoder(frame)
    except Exception:
        return None
    found = data.get("id") if isinstance(data, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, (str, int, float)):
        return None
    if isinstance(found, float) and not math.isfinite(found):
        return None
    return None if isinstance(found, str) and len(found) > MAX_MESSAGE_CHARACTERS else found


def invalid_message(exc: Exception, request_id: str | int | float | None = None) -> dict[str, Any]:
    """The answer to a frame that could not be decoded. It reveals nothing about the server.

    Args:
        request_id: the `id` of the message, which the answer repeats; None for no id.
    """
    answer: dict[str, Any] = {"error": {"type": "invalid_message", "message": invalid_text(exc)}}
    return answer if request_id is None else {"id": request_id, **answer}


def invalid_text(exc: Exception) -> str:
    """The reason why a frame could not be decoded, for the client."""
    known = isinstance(exc, (msgspec.MsgspecError, json.JSONDecodeError))
    text = str(exc) if known else "the message could not be decoded"
    if len(text) > MAX_MESSAGE_CHARACTERS:
        half = MAX_MESSAGE_CHARACTERS // 2  # The end names the position in the message.
        text = f"{text[:half]} ... {text[-half:]}"
    return text
