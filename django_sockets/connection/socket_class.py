"""The interface of an application's socket class for a connection, and checks of its options."""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Protocol, TypeAlias

from ..conf import Source, check_hosts
from ..delivery.events import Members
from ..runtime.hooks import keep_functions, takes_position, takes_updated
from ..typed import Dispatch, taken_types
from .limits import check_limits, check_subprotocol
from .origin import check_allowed_hosts, check_origins
from .overflow import check_policy
from .server_frames import check_frames

__all__ = ["Scope", "Socket", "SocketClass", "check_class", "check_options", "socket_class"]

Scope: TypeAlias = MutableMapping[str, Any]


class Socket(Protocol):
    """An object of the application's class. `BaseSocketServer` documents its options and hooks."""

    scope: Scope
    config: Source | None
    hosts: Sequence[Any] | None
    ws_encoder: Callable[..., str | bytes] | None
    ws_encoder_is_bytes: bool
    ws_decoder: Callable[..., Any] | None
    subprotocol: str | None
    answer_invalid: bool
    allowed_origins: Sequence[str]
    allowed_hosts: Sequence[str]
    overflow: str
    outbox_messages: int
    outbox_bytes: int
    max_message_bytes: int
    max_subscriptions: int
    rate_limit_per_second: float | None
    rate_limit_burst: int | None
    handshake_timeout_seconds: float | None
    idle_timeout_seconds: float | None
    hold_broadcasts: bool
    hold_seconds: float | None
    frames: str
    compress: bool

    def authorize(self) -> Any: ...
    def connect(self) -> Any: ...
    def disconnect(self, *args: Any, **kwargs: Any) -> Any: ...
    def error(self, exc: Exception, /) -> Any: ...
    def decode_error(self, exc: Exception, /) -> Any: ...
    def gap(self, channels: Sequence[str], reason: str, /) -> Any: ...
    def may_subscribe(self, channel: str, /) -> Any: ...
    async def async_handle_received_broadcast(self, channel: str, data: Any, /) -> None: ...
    async def async_send(self, data: Any, raw: bool = False) -> None: ...
    async def async_close(self, code: int = ...) -> None: ...
    def presence(self, channel: str, joined: Members, left: Members, /, *args: Any) -> Any: ...
    async def async_subscribe_for_client(
        self, channels: Any, *, since: Any = ..., replay: int | None = ..., presence: bool = ...
    ) -> Any: ...


class SocketClass:
    """The facts about a socket class, determined once for each class.

    Args:
        cls: the application's class.
        base: the library's class, whose methods are the defaults.

    Attributes:
        dispatch: selects the method for each frame.
        own_broadcast_hook: it overrides `async_handle_received_broadcast`.
        hook_takes_position: that method has a parameter `position`.
        own_gap_hook: it overrides `gap`.
        own_presence_hook: it overrides `presence`.
        hook_takes_updated: that method has the fourth argument `updated`.
        own_options: an object of the class may change options that were checked for the class.
        plain_defaults: defaults that return their result.
        awaitable_defaults: defaults that return something to be awaited.

    Raises:
        ConfigurationError: see `Dispatch`.
    """

    def __init__(self, cls: type[Any], base: type[Any]) -> None:
        self.base = base
        self.dispatch = Dispatch(cls, cls.receive is not base.receive)
        self.own_broadcast_hook = (
            cls.async_handle_received_broadcast is not base.async_handle_received_broadcast
        )
        self.hook_takes_position = self.own_broadcast_hook and takes_position(
            cls.async_handle_received_broadcast
        )
        self.own_gap_hook = cls.gap is not base.gap
        self.own_presence_hook = cls.presence is not base.presence and callable(cls.presence)
        self.hook_takes_updated = self.own_presence_hook and takes_updated(cls.presence)
        self.own_options = (
            cls.configure is not base.configure
            or cls.__init__ is not base.__init__
            or any(hasattr(getattr(cls, name), "__get__") for name in _CHECKS)
        )
        self.plain_defaults = frozenset(
            {
                base.authorize,
                base.connect,
                base.receive,
                base.disconnect,
                base.gap,
                base.may_subscribe,
                base.presence,
            }
        )
        self.awaitable_defaults = frozenset({base.error, base.decode_error})


@functools.lru_cache(maxsize=1024)
def socket_class(cls: type[Any], base: type[Any]) -> SocketClass:
    """The `SocketClass` of a class, which is made once."""
    return SocketClass(cls, base)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "allowed_origins": check_origins,
    "allowed_hosts": check_allowed_hosts,
    "hosts": lambda _, hosts: None if hosts is None else check_hosts(hosts),
    "subprotocol": check_subprotocol,
}


def check_class(cls: type[Any]) -> None:
    """Check the options of a class when it is defined, and apply `keep_functions`.

    Raises:
        ConfigurationError: an option has a wrong value, or two methods take the same message type.
    """
    keep_functions(cls, ("ws_encoder", "ws_decoder"))
    taken_types(cls)
    check_policy(cls.overflow)
    check_frames(cls.frames)
    check_limits(cls)
    for name, check in _CHECKS.items():
        value = getattr(cls, name)
        if not hasattr(value, "__get__"):  # Each object has its own value of a property.
            check(f"{cls.__name__}.{name}", value)


def check_options(socket: Socket) -> None:
    """Check the options that one object has set for itself, in `configure` or `__init__`.

    Raises:
        ConfigurationError: an option has a wrong value.
    """
    check_limits(socket)
    check_policy(socket.overflow)
    check_frames(socket.frames)
    cls = type(socket)
    for name, check in _CHECKS.items():
        value = getattr(socket, name)
        if value is not getattr(cls, name):
            check(f"{cls.__name__}.{name}", value)
