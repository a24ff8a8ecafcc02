"""The presence of a channel: its entries, their changes, and the leases of processes.

A broker with `broker.SupportsPresence` keeps one set of entries for each channel. An entry has a
field, `"<process>:<entry>"`, and a value, which is opaque to the broker. The hub that puts an
entry is its owner, and its process id is the first part of the field. Each state of the set has an
epoch and a version: every change adds 1 to the version. An epoch begins when a change finds no set,
because there was none or because the server lost it. Two states with the same epoch and version
are equal, as long as the server did not lose writes at a failover.

A process is alive as long as it renews its lease. Only the clock of the lease server counts. The
broker removes no entries of dead processes: the hubs that watch a channel do so.

`broker`, the backends and the hub import this module.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping

import msgspec

__all__ = [
    "ABSENT",
    "ADOPTED_AT_ONCE",
    "ALL_ENDED",
    "EMPTY_SECONDS",
    "ENDED_LEASES",
    "KEEP_SECONDS",
    "MAX_ENTRIES",
    "LeaseAction",
    "LeaseReply",
    "LeaseState",
    "NewerFormat",
    "PresenceChange",
    "PresenceDiff",
    "PresenceSnapshot",
    "bytes_of",
    "check_changes",
    "check_lease",
    "check_process",
    "pack_diff",
    "parse_diff",
    "process_of",
    "text_of",
]

MAX_ENTRIES = 20_000
"""Default for the maximum number of entries of a channel."""
KEEP_SECONDS = 24 * 3600
"""A server forgets the entries of a channel after this time without a call of `change_presence`.
Owners therefore repeat their entries at least once an hour."""
EMPTY_SECONDS = 60
"""As `KEEP_SECONDS`, for a channel without entries."""
ADOPTED_AT_ONCE = 1000
"""Maximum number of process ids in the argument `adopt` of `lease`."""
MAX_PROCESS_BYTES = 64
LEAST_LEASE_SECONDS = 0.001
MOST_SECONDS = 3600
"""The bounds of a lease. Ended leases are forgotten after an hour, or earlier if there are many."""
ENDED_LEASES = 1000
"""Maximum number of ended leases that are remembered; the oldest are forgotten first. Leases that
ended in the time of the last two leases are kept above this number: within it, every living process
asks which processes are dead, and removes their entries from the channels that it watches."""
ALL_ENDED = 10_000
"""Maximum number of ended leases that are remembered in any case."""


class PresenceSnapshot(msgspec.Struct, frozen=True):
    """The entries of one channel at one moment. It never leaves out the entries of the dead.

    Attributes:
        epoch: 8 bytes; empty if the channel has no set of entries. The first change to it then
            has the version 1 of a new epoch.
        version: number of changes since the epoch began; 0 without a set.
        entries: field -> value.
    """

    epoch: bytes
    version: int
    entries: dict[str, bytes]


ABSENT = PresenceSnapshot(b"", 0, {})
"""The snapshot of a channel without a set of entries."""


class PresenceDiff(msgspec.Struct, frozen=True):
    """The difference between the version before and this one.

    Attributes:
        epoch, version: of the state after the changes.
        changes: field -> new value, or `b""` for an entry that was removed; 1..n real changes. In
            the order in which they were made, removals first.
    """

    epoch: bytes
    version: int
    changes: dict[str, bytes]


class PresenceChange(msgspec.Struct, frozen=True):
    """The result of `change_presence`.

    Attributes:
        epoch, version: of the state after the call, as in a snapshot.
        changed: number of real changes. If it is over 0, one diff with this version was published.
        refused: fields that were not added, because the channel has the maximum number of entries.
    """

    epoch: bytes
    version: int
    changed: int
    refused: tuple[str, ...] = ()


class LeaseAction(enum.Enum):
    """The action of a call of `lease`."""

    NEW = "new"
    """Begin a lease, which ends `lease_seconds` from now. It never revives an ended lease."""
    RENEW = "renew"
    """Extend a lease: it ends `lease_seconds` from now. It never revives an ended lease."""
    END = "end"
    """Let a lease end `grace_seconds` from now. An unknown process gets such a lease, so that late
    writes of it are recognized. It never revives an ended lease."""
    LOOK = "look"
    """Change nothing for the process."""


class LeaseState(enum.Enum):
    """The lease of the calling process after the call."""

    OK = "ok"
    """The lease has not ended."""
    ENDED = "ended"
    """The lease has ended: other processes may have removed the entries of this one. A process
    that is still alive takes a new id, puts its entries again and removes the old ones."""
    UNKNOWN = "unknown"
    """The server does not know the process: it lost its data, or has forgotten a lease that ended.
    The process does the same as for `ENDED`."""


class LeaseReply(msgspec.Struct, frozen=True):
    """The reply of a lease server.

    Attributes:
        state: the lease of the calling process.
        now_ms: the clock of the server, in milliseconds since its own start of time.
        dead: the processes whose lease has ended, at most `ALL_ENDED`, as long as the server
            remembers them. A process that is in no reply and holds entries is unknown until it was
            adopted (`SupportsPresence.lease`).
        soonest_ms: when the next lease ends by the clock of the server, unless it is renewed; None
            if there is none. It is later than `now_ms`.
    """

    state: LeaseState
    now_ms: int
    dead: frozenset[str]
    soonest_ms: int | None


def process_of(field: str) -> str:
    """The id of the process that owns an entry; empty if the field names none."""
    return field.partition(":")[0] if ":" in field else ""


def check_process(process: str) -> str:
    """Return the process id if it is valid: 1 to 64 bytes of printable ASCII without ":".

    Raises:
        ValueError: it is not.
    """
    if (
        not 1 <= len(process) <= MAX_PROCESS_BYTES
        or not process.isascii()
        or not process.isprintable()
        or ":" in process
    ):
        raise ValueError(f"{process!r} is no process id: use 1 to 64 ASCII letters and digits")
    return process


def check_changes(changes: Mapping[str, bytes]) -> None:
    """Check the fields of changes.

    Raises:
        ValueError: there are none, or a field names no process.
    """
    if not changes:
        raise ValueError("no changes: name one field or more")
    for field in changes:
        if not process_of(field):
            raise ValueError(f"field {field!r} names no process: write '<process>:<entry>'")


def check_lease(
    process: str, lease_seconds: float, grace_seconds: float, adopt: Collection[str]
) -> None:
    """Check the arguments of `lease`.

    Raises:
        ValueError: one is not valid.
    """
    for one in (process, *adopt):
        check_process(one)
    if len(adopt) > ADOPTED_AT_ONCE:
        raise ValueError(f"adopt has {len(adopt)} ids: use at most {ADOPTED_AT_ONCE} in one call")
    if not LEAST_LEASE_SECONDS <= lease_seconds <= MOST_SECONDS:
        raise ValueError(
            f"lease_seconds={lease_seconds!r}: use {LEAST_LEASE_SECONDS} to {MOST_SECONDS}"
        )
    if not 0 <= grace_seconds <= MOST_SECONDS:
        raise ValueError(f"grace_seconds={grace_seconds!r}: use 0 to {MOST_SECONDS}")


# The wire format of a diff; docs/wire-format.md describes it.

DIFF_KIND = b"dp"
DIFF_FORMAT = b"dp1"
_EPOCH = slice(3, 11)
_VERSION = slice(11, 27)
_FIRST = 27
_LENGTH_DIGITS = 8


class NewerFormat(ValueError):
    """A diff has the format of a newer version of this library."""


def parse_diff(payload: bytes) -> PresenceDiff:
    """The diff in a published payload.

    Raises:
        NewerFormat: it has a format that this version does not know.
        ValueError: it is no diff.
    """
    if not payload.startswith(DIFF_FORMAT):
        if payload.startswith(DIFF_KIND) and payload[2:3].isdigit():
            raise NewerFormat
        raise ValueError("no diff of a presence")
    version = payload[_VERSION]
    if len(version) != _VERSION.stop - _VERSION.start or not version.isdigit():
        raise ValueError("malformed version")
    parts = iter(list(_parts(payload)))
    changes = {text_of(field): value for field, value in zip(parts, parts, strict=True)}
    return PresenceDiff(payload[_EPOCH], int(version), changes)


def _parts(payload: bytes) -> Iterator[bytes]:
    """The parts of a diff, each behind its length."""
    at = _FIRST
    while at < len(payload):
        digits = payload[at : at + _LENGTH_DIGITS]
        at += _LENGTH_DIGITS
        if len(digits) != _LENGTH_DIGITS or not digits.isdigit() or at + int(digits) > len(payload):
            raise ValueError("malformed length")
        yield payload[at : at + int(digits)]
        at += int(digits)


def pack_diff(diff: PresenceDiff) -> bytes:
    """The payload of a diff, as the script of the servers makes it."""
    head = b"%b%b%016d" % (DIFF_FORMAT, diff.epoch, diff.version)
    parts = (part for pair in diff.changes.items() for part in (bytes_of(pair[0]), pair[1]))
    return head + b"".join(b"%08d%b" % (len(part), part) for part in parts)


def text_of(field: bytes) -> str:
    """A field as text. Bytes that are no UTF-8, of other programs, survive the way back."""
    return field.decode("utf-8", "surrogateescape")


def bytes_of(field: str) -> bytes:
    """The bytes of a field."""
    return field.encode("utf-8", "surrogateescape")
