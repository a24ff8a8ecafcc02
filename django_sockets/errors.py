"""Every exception the library raises on purpose, and nothing else.

    DjangoSocketsError
    ├── ConfigurationError      a URL, an option or a setting is wrong   (also ValueError)
    ├── ChannelError            a channel name is not usable             (also ValueError)
    ├── EncodeError             data has no JSON form                    (also TypeError)
    ├── PayloadTooLarge         a payload is over the limit              (also ValueError)
    ├── BrokerError             something between us and the server failed
    │   ├── ConnectError        no usable connection
    │   │   └── AuthError       no credentials, or the server refused them
    │   ├── PublishError        some channels were not (or perhaps not) published to
    │   ├── SubscribeError      a subscription was not acknowledged
    │   └── BrokerClosed        used after aclose()
    ├── CallError               a plain (not async) call could not be finished
    │   └── ThreadError         a thread that is needed cannot be started   (also RuntimeError)
    ├── NotAllowed              a client asked for a channel that it may not have
    └── Reject                  raised by an application to refuse a handshake

Errors carry their data as attributes and build their own message. No message contains
a password: URLs appear redacted. Anyone may import this module; it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AuthError",
    "BrokerClosed",
    "BrokerError",
    "CallError",
    "ChannelError",
    "ConfigurationError",
    "ConnectError",
    "DjangoSocketsError",
    "EncodeError",
    "NotAllowed",
    "PayloadTooLarge",
    "PublishError",
    "Reject",
    "SubscribeError",
    "pip_command",
]


class DjangoSocketsError(Exception):
    """Base of every error of this library."""


class ConfigurationError(DjangoSocketsError, ValueError):
    """A URL, an option or a setting is wrong; the message names the part and the valid ones."""


class ChannelError(DjangoSocketsError, ValueError):
    """A channel name cannot be used.

    Attributes:
        channel: what was passed, of whatever type.
    """

    def __init__(self, channel: object, problem: str) -> None:
        self.channel = channel
        shown = repr(channel)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"channel {shown} {problem}")


class EncodeError(DjangoSocketsError, TypeError):
    """The data has no JSON form; the message says what in it and what to do."""


class PayloadTooLarge(DjangoSocketsError, ValueError):
    """A payload is over the limit; nothing was published.

    Attributes:
        size_bytes: size of the refused payload.
        limit_bytes: the limit in force.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"payload of {size_bytes} bytes is over the limit of {limit_bytes} bytes: send less, "
            "or raise the URL option max_payload_bytes in every process"
        )


class BrokerError(DjangoSocketsError):
    """Something between this process and the server failed.

    Attributes:
        url: the broker's URL with its password left out.
        problem: the message without the URL.
    """

    def __init__(self, url: object, problem: str) -> None:
        self.url = str(url)
        self.problem = problem
        super().__init__(f"{self.url}: {problem}")


class ConnectError(BrokerError):
    """No usable connection to the server could be made."""


class AuthError(ConnectError):
    """The server refused the credentials, or there are none to offer it."""


class PublishError(BrokerError):
    """A publish did not certainly reach the server.

    Attributes:
        failed: channels that certainly got nothing; publishing to them again repeats nothing.
        unknown: channels whose outcome is unknown: the command was written and no reply came.
        reason: the problem without the channels.
    """

    def __init__(
        self, url: object, problem: str, *, failed: Iterable[str] = (), unknown: Iterable[str] = ()
    ) -> None:
        self.failed = tuple(failed)
        self.unknown = tuple(unknown)
        self.reason = problem
        parts = [problem]
        if self.failed:
            parts.append(f"not published to {_names(self.failed)}")
        if self.unknown:
            parts.append(f"outcome unknown for {_names(self.unknown)}")
        super().__init__(url, "; ".join(parts))


class SubscribeError(BrokerError):
    """A subscription was not acknowledged in time, or was refused; none of its channels is kept.

    Attributes:
        channels: the channels of the call that failed.
        reason: the problem without the channels.
    """

    def __init__(self, url: object, problem: str, *, channels: Iterable[str]) -> None:
        self.channels = tuple(channels)
        self.reason = problem
        super().__init__(url, f"{problem}; not subscribed to {_names(self.channels)}")


class BrokerClosed(BrokerError):
    """A broker or hub was used after `aclose()`."""

    def __init__(self, url: object) -> None:
        super().__init__(url, "is closed: open a new one")


class CallError(DjangoSocketsError):
    """A plain call such as `socket.broadcast(...)` could not be finished on its event loop.

    Raised when the loop has stopped, did not answer within `sync_call_timeout_seconds`, or has
    too many scheduled calls waiting. The work itself may or may not have been done.
    """


class ThreadError(CallError, RuntimeError):
    """A thread that is needed cannot be started. Nothing was done; a later call tries again.

    The process has reached a limit on threads, the interpreter is exiting, or gevent or eventlet
    has replaced threads by greenlets where that cannot work.
    """


class NotAllowed(DjangoSocketsError):
    """A client asked for channels that it may not have; it was subscribed to none of them.

    Attributes:
        channel: the one that `may_subscribe` refused, or None if something else is wrong.
        reason: what is; not written for the client.
    """

    def __init__(self, reason: str, *, channel: str | None = None) -> None:
        self.channel = channel
        self.reason = reason
        super().__init__(f"not allowed: {reason}")


class Reject(DjangoSocketsError):
    """Raise it in `authorize` to refuse a websocket handshake.

    Attributes:
        status: HTTP status of the refusal, 400 to 599.
    """

    def __init__(self, status: int = 403, reason: str = "") -> None:
        if not 400 <= status <= 599:
            raise ConfigurationError(f"Reject(status={status}): use a status from 400 to 599")
        self.status = status
        self.reason = reason
        super().__init__(reason or f"refused with HTTP {status}")


def pip_command(extra: str) -> str:
    """The command that adds an extra to the installed version.

    Without the version pip might install the release before 4.0, which has other extras.
    """
    return f"pip install 'django-sockets[{extra}]>=4.0.dev0'"


def _names(channels: tuple[str, ...], most: int = 5) -> str:
    shown = ", ".join(repr(channel) for channel in channels[:most])
    more = len(channels) - most
    return shown if more <= 0 else f"{shown} and {more} more"
