"""Where a new subscriber begins to read its channels: `since` and `replay` of `Hub.add`.

A hub without a history imports nothing else of this folder, apart from the pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...history import Position, Recovery

__all__ = ["NO_RECOVERY", "starts_of"]

NO_RECOVERY = Recovery()
"""The result of a subscription without a history."""


def starts_of(
    names: Sequence[str], since: str | Mapping[str, str] | None, replay: int
) -> dict[str, Position | int]:
    """Where the subscriber begins to read each channel; only channels with `since` or `replay`.

    Args:
        since, replay: see `Hub.add`.

    Raises:
        PositionError: a text is not a position.
        ValueError: `replay` is negative.
    """
    wanted: object = replay
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        raise ValueError(f"replay={replay!r}: use a whole number of messages, 0 for none")
    texts = since if isinstance(since, Mapping) else dict.fromkeys(names, since)
    starts: dict[str, Position | int] = {}
    for name in names:
        text = texts.get(name)
        if text is not None:
            starts[name] = Position.parse(text)
        elif replay:
            starts[name] = replay
    return starts
