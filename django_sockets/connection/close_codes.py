"""All close codes that the library uses, their senders, and how a client should react.

The numbers are from RFC 6455, section 7.4.1, and from the IANA registry of close codes. Numbers
from 4000 on are for applications. An application may close with other codes, too. They are checked
by `hub.control.check_close_code`, because orders between processes contain codes.

| code | sent by | when | reaction of a client |
|------|---------|------|----------------------|
| 1000 | the application, or the client | `close()`; HTTP 403 before the accept | do not reconnect |
| 1001 | the client, or the server | the page was left, or the process exits | reconnect |
| 1005 | never sent | stands for a close frame without a code | any |
| 1007 | `decode_error` | a frame cannot be decoded, or is not valid | correct the message |
| 1008 | rate limit, `NotAllowed` | the client did something forbidden | wait, or ask for less |
| 1009 | the receive loop | a frame is over `max_message_bytes` | send less |
| 1011 | `error` | a handler raised an exception | reconnect after a back-off |
| 1012 | the drain | the server shuts down | reconnect after a random delay |
| 1013 | the overflow policy "close" | the client reads too slowly | reconnect and load the state |
| 4400 to 4499 | `admit` | a client of the protocol is refused with 400 to 499 | do not reconnect |
| 4401 | `close_sockets` | a session or a token has ended | log in again |
| 4408 | the idle timer | no frame came for `idle_timeout_seconds` | reconnect when needed |

With some servers, an application may use only 1000 and 3000 to 4999: see `close_code_for_autobahn`.
"""

from __future__ import annotations

__all__ = [
    "BAD_DATA",
    "GOING_AWAY",
    "IDLE",
    "INTERNAL_ERROR",
    "NORMAL",
    "NO_CODE",
    "POLICY",
    "RESTART",
    "TOO_BIG",
    "TRY_AGAIN",
    "UNAUTHORIZED",
    "close_code_for_autobahn",
    "reconnection",
]

NORMAL = 1000
GOING_AWAY = 1001
NO_CODE = 1005
"""It is never sent. It means that the client has closed without a code."""
BAD_DATA = 1007
POLICY = 1008
TOO_BIG = 1009
INTERNAL_ERROR = 1011
RESTART = 1012
TRY_AGAIN = 1013
UNAUTHORIZED = 4401
"""Named after HTTP's status 401."""
IDLE = 4408
"""Named after HTTP's status 408."""


RECONNECTIONS: dict[int, tuple[float, float]] = {
    1001: (0, 1),
    1005: (0, 1),
    1006: (0, 1),
    INTERNAL_ERROR: (1, 5),
    RESTART: (0, 5),
    TRY_AGAIN: (5, 10),
    UNAUTHORIZED: (0, 1),
    IDLE: (0, 5),
    4429: (10, 60),
    4503: (10, 60),
}
"""Close code -> the bounds in seconds of the random delay after which a client reconnects."""
FINAL = frozenset({NORMAL, BAD_DATA, POLICY, TOO_BIG})
"""The other codes below 3000 after which a client does not reconnect."""
_OTHERS = (1, 5)


def reconnection(code: int) -> tuple[bool, tuple[float, float]]:
    """Whether a client of the protocol reconnects after a close, and the bounds of its delay."""
    bounds = RECONNECTIONS.get(code)
    if bounds is not None:
        return True, bounds
    return not (code in FINAL or code >= 3000), _OTHERS


def close_code_for_autobahn(code: int) -> int | None:
    """The code to send instead of a standard code that autobahn refuses; None for other codes.

    With daphne 4.2 (autobahn), an application may use only 1000 and 3000 to 4999. For example, 1011
    becomes 3011.
    """
    return code + 2000 if code in range(1001, 1016) else None
