"""Messages of consumers as bytes: msgpack or JSON, encrypted if there are keys.

The encryption is that of channels_redis: Fernet with the SHA-256 hash of each key. The first key
encrypts, and all keys decrypt, so that keys can be changed while messages are under way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from ...errors import ConfigurationError, EncodeError, pip_command
from ...url import suggest

__all__ = ["Packed", "Serializer", "Unreadable"]

_SCALARS = frozenset([bool, bytes, float, int, str, type(None)])
_TYPES = (bool, bytes, bytearray, float, int, str)
CLOCK_SKEW_SECONDS = 10
"""Beyond the expiry, an encrypted message is accepted for this time."""


class Unreadable(Exception):
    """The bytes are no message of this layer: the keys or the format differ, or it is too old."""


class Serializer:
    """Converts messages to bytes and back.

    Args:
        name: "msgpack", "json", or the name of a format in the registry of channels_redis.
        keys: 0..n keys, each a text or bytes.
        expiry_seconds: older encrypted messages are refused.

    Raises:
        ConfigurationError: an unknown format, wrong keys, or a missing package.

    Attributes:
        unpack: decodes what `unseal` has returned; it may raise anything.
    """

    def __init__(
        self, name: str, keys: Sequence[str | bytes] | None, expiry_seconds: float
    ) -> None:
        self._crypter = _crypter(keys) if keys else None
        self._max_age_seconds = int(expiry_seconds) + 1 + CLOCK_SKEW_SECONDS
        self._pack, self.unpack = _format(name, keys)
        self._allows_bytes = name != "json"
        self._check_types = name in ("msgpack", "json")

    def serialize(self, message: object) -> bytes:
        """Encode and encrypt.

        Raises:
            EncodeError: the message contains a type that a channel layer does not carry.
        """
        if self._check_types:
            try:
                _check(message, self._allows_bytes)
            except RecursionError:
                raise EncodeError("the message contains itself, or is nested too deeply") from None
        try:
            data = self._pack(message)
        except (TypeError, ValueError, OverflowError) as exc:
            raise EncodeError(f"the message cannot be sent: {exc}") from exc
        return self.seal(data)

    def deserialize(self, data: bytes) -> Any:
        """Decrypt and decode.

        Raises:
            Unreadable: the data was not made by `serialize` with one of the keys.
        """
        return self.message(self.received(data))

    def received(self, data: bytes) -> bytes | Packed:
        """A received message for `message`: the data itself if it is not encrypted."""
        return data if self._crypter is None else Packed(self, data)

    def message(self, content: bytes | HasMessage) -> Any:
        """The message of what `received` has returned, as a new object. Raises Unreadable."""
        if type(content) is not bytes:
            return content.message()  # type: ignore[union-attr]
        try:
            return self.unpack(content)
        except Exception as exc:  # A serializer of the application may raise anything.
            raise Unreadable(f"{type(exc).__name__}: {exc}") from exc

    def seal(self, plain: bytes) -> bytes:
        """Encrypt, if there are keys."""
        return plain if self._crypter is None else self._crypter.encrypt(plain)

    def unseal(self, data: bytes) -> bytes:
        """Decrypt, if there are keys.

        Raises:
            Unreadable: no key decrypts it, or it is too old.
        """
        if self._crypter is None:
            return data
        from cryptography.fernet import InvalidToken

        try:
            plain: bytes = self._crypter.decrypt(data, self._max_age_seconds)
        except InvalidToken:
            raise Unreadable("no key decrypts it, or it is too old") from None
        return plain


class HasMessage(Protocol):
    """Content of a box that is not bytes."""

    def message(self) -> Any:
        """A new object for one consumer. Raises Unreadable."""


class Packed:
    """An encrypted message, shared by all channels of this process that get it.

    It is decrypted once, and decoded for each consumer, because a consumer may change it.
    """

    __slots__ = ("_data", "_plain", "_serializer")

    def __init__(self, serializer: Serializer, data: bytes) -> None:
        self._serializer = serializer
        self._data = data
        self._plain: bytes | None = None

    def message(self) -> Any:
        """A new object for one consumer. Raises Unreadable."""
        if self._plain is None:
            self._plain = self._serializer.unseal(self._data)
        return self._serializer.message(self._plain)


def _check(value: object, allows_bytes: bool) -> None:
    """Raise EncodeError unless the value has only the types of the channel layer specification."""
    kind = type(value)
    if kind is dict or isinstance(value, dict):
        for key, item in value.items():  # type: ignore[attr-defined]
            if not isinstance(key, str):
                raise EncodeError(
                    f"a dict in the message has the key {key!r:.80}, a {type(key).__name__}: keys "
                    "must be str"
                )
            if type(item) not in _SCALARS or not allows_bytes:
                _check(item, allows_bytes)
    elif kind is list or kind is tuple or isinstance(value, (list, tuple)):
        for item in value:  # type: ignore[attr-defined]
            if type(item) not in _SCALARS or not allows_bytes:
                _check(item, allows_bytes)
    elif isinstance(value, (bytes, bytearray)) and not allows_bytes:
        raise EncodeError('JSON has no bytes: use serializer_format "msgpack", or send a str')
    elif value is not None and not isinstance(value, _TYPES):
        raise EncodeError(
            f"the message contains a {kind.__name__}: send str, bytes, int, float, bool, None, "
            "lists and dicts"
        )


def _format(
    name: str, keys: Sequence[str | bytes] | None
) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    if name == "json":
        return (lambda message: json.dumps(message).encode()), json.loads
    if name == "msgpack":
        try:
            import msgpack
        except ModuleNotFoundError:
            raise ConfigurationError(
                f"the package 'msgpack' is not installed: run {pip_command('channels')}"
            ) from None
        # msgspec decodes faster. msgpack encodes, because it takes subclasses of str.
        return msgpack.packb, msgspec.msgpack.Decoder().decode
    foreign = sys.modules.get("channels_redis.serializers")
    if foreign is not None and isinstance(name, str):
        try:
            own = foreign.registry.get_serializer(name)
        except KeyError:
            pass
        else:
            return own.serialize, own.deserialize
    raise ConfigurationError(
        f"unknown serializer_format {name!r}; {suggest(str(name), ['json', 'msgpack'])}"
    )


def _crypter(keys: Sequence[str | bytes]) -> Any:
    is_list = isinstance(keys, (list, tuple))
    if not is_list or not all(isinstance(key, (str, bytes)) for key in keys):
        raise ConfigurationError("symmetric_encryption_keys is a list of keys, each a str or bytes")
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ModuleNotFoundError:
        raise ConfigurationError(
            "symmetric_encryption_keys needs the package 'cryptography': run "
            f"{pip_command('encryption')}"
        ) from None
    digests = (hashlib.sha256(key.encode() if isinstance(key, str) else key) for key in keys)
    return MultiFernet([Fernet(base64.urlsafe_b64encode(d.digest())) for d in digests])
