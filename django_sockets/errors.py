"""All exceptions of the library.

    DjangoSocketsError
    ├── ConfigurationError      a URL, an option or a setting is wrong   (also ValueError)
    ├── ChannelError            a channel name is not usable             (also ValueError)
    ├── EncodeError             data has no JSON form                    (also TypeError)
    ├── PayloadTooLarge         a payload is over the limit              (also ValueError)
    ├── PositionError           text is not a position in a history      (also ValueError)
    ├── BrokerError             the connection to the server, or the server, failed
    │   ├── ConnectError        no usable connection
    │   │   └── AuthError       no credentials, or the server refused them
    │   ├── PublishError        a publish failed, or its outcome is unknown
    │   ├── SubscribeError      a subscription was not acknowledged
    │   ├── QueueError          a call to a queue failed, or its outcome is unknown
    │   ├── HistoryError        the history of a channel could not be read
    │   ├── PresenceError       the presence of a channel could not be read or changed
    │   │   └── PresenceFull    a channel has its maximum number of entries
    │   └── BrokerClosed        used after aclose()
    ├── CallError               a plain (not async) call could not be finished
    │   └── ThreadError         a required thread cannot be started      (also RuntimeError)
    ├── NotAllowed              a client requested a channel that it may not have
    ├── RequestError            raised by an application as the answer to a message
    └── Reject                  raised by an application to refuse a handshake

Errors carry their data as attributes and build their own message. No message contains a password,
because URLs are redacted. Any module may import this one. It imports nothing of this package.
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
    "HistoryError",
    "NotAllowed",
    "PayloadTooLarge",
    "PositionError",
    "PresenceError",
    "PresenceFull",
    "PublishError",
    "QueueError",
    "Reject",
    "RequestError",
    "SubscribeError",
    "pip_command",
    "suggest",
]


class DjangoSocketsError(Exception):
    """Base class of all errors of this library."""


class ConfigurationError(DjangoSocketsError, ValueError):
    """A URL, an option or a setting is wrong. The message names the part and the valid values."""


class ChannelError(DjangoSocketsError, ValueError):
    """A channel name cannot be used.

    Attributes:
        channel: the value that was passed, of any type.
    """

    def __init__(self, channel: object, problem: str) -> None:
        self.channel = channel
        shown = repr(channel)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"channel {shown} {problem}")


class EncodeError(DjangoSocketsError, TypeError):
    """The data has no JSON form. The message names the part and what to do."""


class PayloadTooLarge(DjangoSocketsError, ValueError):
    """A payload, or the info of a member, is over the limit. Nothing was sent to the server.

    Attributes:
        size_bytes: the size of the refused payload.
        limit_bytes: the limit.
    """

    def __init__(
        self,
        size_bytes: int,
        limit_bytes: int,
        *,
        what: str = "payload",
        option: str = "max_payload_bytes",
    ) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"{what} of {size_bytes} bytes is over the limit of {limit_bytes} bytes: send less, "
            f"or raise the URL option {option} in every process"
        )


class PositionError(DjangoSocketsError, ValueError):
    """A text is not a position of a message in the history of a channel.

    The text is not shown, because it may come from a client.
    """

    def __init__(self) -> None:
        super().__init__(
            "not a position: pass the text of a received `position` unchanged, or None"
        )


class BrokerError(DjangoSocketsError):
    """The connection to the server, or the server, failed.

    Attributes:
        url: the URL of the broker without its password.
        problem: the message without the URL.
    """

    def __init__(self, url: object, problem: str) -> None:
        self.url = str(url)
        self.problem = problem
        super().__init__(f"{self.url}: {problem}")


class ConnectError(BrokerError):
    """No usable connection to the server could be opened."""


class AuthError(ConnectError):
    """The server refused the credentials, or there are no credentials."""


class PublishError(BrokerError):
    """A publish failed on some channels, or its outcome is unknown.

    Attributes:
        failed: channels on which nothing was published. Another publish causes no repetition.
        unknown: channels with an unknown outcome: the command was written and no reply came.
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
    """A subscription was refused or not acknowledged in time. None of its channels is kept.

    Attributes:
        channels: the channels of the call that failed.
        reason: the problem without the channels.
    """

    def __init__(self, url: object, problem: str, *, channels: Iterable[str]) -> None:
        self.channels = tuple(channels)
        self.reason = problem
        super().__init__(url, f"{problem}; not subscribed to {_names(self.channels)}")


class QueueError(BrokerError):
    """A call to a queue of the broker failed.

    Attributes:
        queue: the name of the queue.
        unknown: True if the command was written and no reply came; it may have been executed.
        reason: the problem without the queue.
    """

    def __init__(self, url: object, problem: str, *, queue: str, unknown: bool = False) -> None:
        self.queue = queue
        self.unknown = unknown
        self.reason = problem
        outcome = "outcome unknown for" if unknown else "not done:"
        super().__init__(url, f"{problem}; {outcome} queue {queue!r}")


class HistoryError(BrokerError):
    """The history of channels could not be read. Publishing and subscriptions may still work.

    Attributes:
        channels: the channels that could not be read.
        reason: the problem without the channels.
    """

    def __init__(self, url: object, problem: str, *, channels: Iterable[str]) -> None:
        self.channels = tuple(channels)
        self.reason = problem
        super().__init__(url, f"{problem}; no history of {_names(self.channels)}")


class PresenceError(BrokerError):
    """The presence of channels, or a lease, could not be read or changed.

    Attributes:
        channels: the channels of the call that failed; none for a lease.
        unknown: True if the command was written and no reply came; it may have been executed.
        reason: the problem without the channels.
    """

    def __init__(
        self, url: object, problem: str, *, channels: Iterable[str] = (), unknown: bool = False
    ) -> None:
        self.channels = tuple(channels)
        self.unknown = unknown
        self.reason = problem
        where = f"the presence of {_names(self.channels)}" if self.channels else "the lease"
        outcome = "outcome unknown for" if unknown else "failed:"
        super().__init__(url, f"{problem}; {outcome} {where}")


class PresenceFull(PresenceError):
    """A channel has its maximum number of entries, so that no other one was added.

    Attributes:
        limit: the maximum number.
    """

    def __init__(self, url: object, channel: str, limit: int) -> None:
        self.limit = limit
        super().__init__(
            url,
            f"there are {limit} entries, which is the maximum: raise presence_members",
            channels=[channel],
        )


class BrokerClosed(BrokerError):
    """A broker or hub was used after `aclose`."""

    def __init__(self, url: object) -> None:
        super().__init__(url, "is closed: open a new one")


class CallError(DjangoSocketsError):
    """A plain call such as `socket.broadcast(...)` could not be finished on its event loop.

    The loop has stopped, did not answer within `sync_call_timeout_seconds`, or has too many
    scheduled calls. The call may or may not have had its effect.
    """


class ThreadError(CallError, RuntimeError):
    """A required thread cannot be started. The call had no effect, and a later call tries again.

    The process has reached a limit on threads, the interpreter is exiting, or gevent or eventlet
    has replaced threads with greenlets and the thread cannot be a greenlet.
    """


class NotAllowed(DjangoSocketsError):
    """A client requested channels that it may not have. It was subscribed to none of them.

    Attributes:
        channel: the channel that `may_subscribe` refused; None for another reason.
        reason: the reason. It is not meant for the client.
    """

    def __init__(self, reason: str, *, channel: str | None = None) -> None:
        self.channel = channel
        self.reason = reason
        super().__init__(f"not allowed: {reason}")


class RequestError(DjangoSocketsError):
    """A handler raises it as its answer to the message of a client. The client sees all of it.

    A client of the protocol `django-sockets.v1` gets `{"id": 1, "error": {"code": code, "message":
    message, "temporary": false}}`. Other clients get `{"error": {"type": code, "message":
    message}}`. The connection stays open, and nothing is logged.

    Attributes:
        code: a short text for programs, such as "sold_out".
        message: a text for people, or the empty text.
        temporary: whether the same request may succeed later.
        after_seconds: the time after which the client may repeat a temporary request; None if it
            is not known.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        temporary: bool = False,
        after_seconds: float | None = None,
    ) -> None:
        after: object = after_seconds
        if after is not None and not (isinstance(after, (int, float)) and 0 <= after < 1e9):
            raise ConfigurationError(f"after_seconds={after!r}: use a number of seconds, or None")
        self.code = code = str(code)
        self.message = message = str(message)  # It may be one of Django's lazy strings.
        self.temporary = bool(temporary)
        self.after_seconds = after_seconds
        super().__init__(f"{code}: {message}" if message else code)


class Reject(DjangoSocketsError):
    """An application raises it in `authorize` to refuse a websocket handshake.

    Attributes:
        status: the HTTP status of the refusal, 400 to 599.
    """

    def __init__(self, status: int = 403, reason: str = "") -> None:
        if not 400 <= status <= 599:
            raise ConfigurationError(f"Reject(status={status}): use a status from 400 to 599")
        self.status = status
        self.reason = reason
        super().__init__(reason or f"refused with HTTP {status}")


def pip_command(extra: str) -> str:
    """The command that installs an extra.

    Without the version, pip could install a release before 4.0, which has other extras.
    """
    return f"pip install 'django-sockets[{extra}]>=4.0.dev0'"


def suggest(wrong: str, valid: Iterable[str]) -> str:
    """The end of an error message: the closest valid name, and all valid names."""
    import difflib  # Imported here to save a millisecond at every start.

    names = sorted(valid)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names) or 'none'}"


def _names(channels: tuple[str, ...], most: int = 5) -> str:
    shown = ", ".join(_name(channel) for channel in channels[:most])
    more = len(channels) - most
    return shown if more <= 0 else f"{shown} and {more} more"


def _name(channel: str) -> str:
    if channel.startswith("\x01"):
        return f"the library's own channel {channel[1:]!r}"
    return repr(channel)
