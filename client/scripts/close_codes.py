"""Writes src/close_codes.js from the table of close codes, so that one table serves both sides."""

from __future__ import annotations

from pathlib import Path

from django_sockets.connection.close_codes import FINAL, RECONNECTIONS, reconnection

TARGET = Path(__file__).resolve().parents[1] / "src" / "close_codes.js"
UNKNOWN_CODE = 2999
"""A code below 3000 that is in no table."""


def rendered() -> str:
    rows = "".join(
        f"  {code}: [{low:g}, {high:g}],\n" for code, (low, high) in sorted(RECONNECTIONS.items())
    )
    low, high = reconnection(UNKNOWN_CODE)[1]
    return f"""\
/** Made by scripts/close_codes.py from django_sockets/connection/close_codes.py: do not edit. */

/** @typedef {{readonly [number, number]}} Bounds  of a delay, in seconds */

/** @type {{Readonly<Record<number, Bounds>>}} */
export const RECONNECTIONS = {{
{rows}}};

/** After these codes, and after others from 3000 on, a client does not reconnect. */
export const FINAL = {sorted(FINAL)};

/** @type {{Bounds}} */
export const OTHERS = [{low:g}, {high:g}];
"""


if __name__ == "__main__":
    TARGET.write_text(rendered(), encoding="utf-8")
