"""The entries of one channel as this process knows them, and the changes of its members.

A replica follows the state of the server: it takes a snapshot, and then each diff. Its events are
the transitions of its members by key, never the diffs themselves. A member joins with its first
entry and leaves with its last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from ...decoding import decode_json
from ...delivery.events import Presence
from ...presence import PresenceDiff, PresenceSnapshot, process_of
from .values import read_value

__all__ = ["Replica", "members_in"]

_NONE: dict[str, Any] = {}

_Entries = tuple[list[bytes], list[Any]]
"""The values of the entries of a member, and the infos in them."""


class Replica:
    """The entries of one channel.

    Attributes:
        values: field -> value. Read only.
        fields_of: process -> its fields. Read only.
    """

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._epoch = b""
        self._version = 0
        self.values: dict[str, bytes] = {}
        self.fields_of: dict[str, dict[str, None]] = {}
        # Key of a member -> field -> decoded info. Lists and events contain these same objects, so
        # that a list of many members costs no decoding.
        self._infos: dict[str, dict[str, Any]] = {}

    @property
    def is_new(self) -> bool:
        """No entry was known so far."""
        return not self._epoch

    @property
    def processes(self) -> Set[str]:
        """The processes that have entries."""
        return self.fields_of.keys()

    def has_epoch(self, epoch: bytes) -> bool:
        """Whether a state is of the same epoch as the replica."""
        return epoch == self._epoch

    def follows(self, diff: PresenceDiff) -> bool | None:
        """Whether a diff follows on this state; None if it is known already."""
        if diff.epoch == self._epoch:
            if diff.version <= self._version:
                return None
            return diff.version == self._version + 1
        # The server forgets a channel without entries, and its next change begins an epoch.
        return diff.version == 1 and not self.values

    def take_diff(self, diff: PresenceDiff) -> Presence | None:
        """Apply a diff that follows. Returns the change of the members, if there is one."""
        self._epoch, self._version = diff.epoch, diff.version
        return self._apply(diff.changes)

    def difference(self, snapshot: PresenceSnapshot) -> dict[str, bytes]:
        """The changes that lead from this state to a snapshot."""
        gone = {field: b"" for field in self.values if field not in snapshot.entries}
        known = self.values
        return gone | {
            field: value for field, value in snapshot.entries.items() if known.get(field) != value
        }

    def take_snapshot(
        self, snapshot: PresenceSnapshot, difference: Mapping[str, bytes]
    ) -> Presence | None:
        """Take the state of a snapshot. Returns the change of the members, if there is one."""
        self._epoch, self._version = snapshot.epoch, snapshot.version
        return self._apply(difference)

    def members(self, without: Iterable[str] = ()) -> dict[str, list[Any]]:
        """The members, with the infos of their entries. The lists are new, the infos are not.

        Args:
            without: processes whose entries are left out.
        """
        hidden = {field for process in without for field in self.fields_of.get(process, ())}
        if not hidden:
            return {key: list(infos.values()) for key, infos in self._infos.items()}
        found = {}
        for key, infos in self._infos.items():
            shown = [info for field, info in infos.items() if field not in hidden]
            if shown:
                found[key] = shown
        return found

    def _apply(self, changes: Mapping[str, bytes]) -> Presence | None:
        before: dict[str, _Entries] = {}
        for field, value in changes.items():
            for one in (self.values.get(field), value):
                found = read_value(one) if one else None
                if found is not None and found[0] not in before:
                    before[found[0]] = self._entries_of(found[0])
            self._remove(field)
            if value:
                self._add(field, value)
        return self._transition(before)

    def _entries_of(self, key: str) -> _Entries:
        infos = self._infos.get(key, _NONE)
        return [self.values[field] for field in infos], list(infos.values())

    def _add(self, field: str, value: bytes) -> None:
        self.values[field] = value
        self.fields_of.setdefault(process_of(field), {})[field] = None
        found = read_value(value)
        if found is not None:
            self._infos.setdefault(found[0], {})[field] = _data(found[1])

    def _remove(self, field: str) -> None:
        value = self.values.pop(field, None)
        if value is None:
            return
        process = process_of(field)
        fields = self.fields_of[process]
        del fields[field]
        if not fields:
            del self.fields_of[process]
        found = read_value(value)
        if found is not None:
            infos = self._infos[found[0]]
            del infos[field]
            if not infos:
                del self._infos[found[0]]

    def _transition(self, before: Mapping[str, _Entries]) -> Presence | None:
        joined, left, updated = {}, {}, {}
        for key, (old, old_infos) in before.items():
            new, new_infos = self._entries_of(key)
            if not old and new:
                joined[key] = new_infos
            elif old and not new:
                left[key] = old_infos
            elif sorted(old) != sorted(new):
                updated[key] = new_infos
        if not (joined or left or updated):
            return None
        return Presence(channel=self._channel, joined=joined, left=left, updated=updated)


def members_in(entries: Mapping[str, bytes]) -> dict[str, list[Any]]:
    """The members of entries, with the infos of their entries.

    Args:
        entries: field -> value.
    """
    found: dict[str, list[Any]] = {}
    for value in entries.values():
        member = read_value(value)
        if member is not None:
            found.setdefault(member[0], []).append(_data(member[1]))
    return found


def _data(info: bytes) -> Any:
    try:
        return decode_json(info)
    except ValueError:  # Another program wrote it.
        return None
