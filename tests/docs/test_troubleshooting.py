"""docs/troubleshooting.md has every close code and error of a channel, and lists its sections."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
PROTOCOL = (DOCS / "client-protocol.md").read_text(encoding="utf-8")
NO_TROUBLE = {
    "1000", "1001", "1005",  # An end that was wanted, or that looks like 1006.
    "4429", "4503",  # They say it themselves, and the client waits.
}  # fmt: skip


def test_every_close_code_of_the_protocol_is_explained() -> None:
    table = PROTOCOL[PROTOCOL.index("If there was no `bye`") :]
    codes = set(re.findall(r"^\| ([0-9]{4})\b", table, re.MULTILINE))
    codes |= set(re.findall(r"^\| 1005, ([0-9]{4})", table, re.MULTILINE))
    assert len(codes) >= 12
    assert {code for code in codes - NO_TROUBLE if code not in PAGE} == set()


def test_every_lasting_error_of_a_channel_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:yes|no) \| ([^|]*) \|", PROTOCOL, re.MULTILINE)
    codes = {code for code, where in rows if "channel" in where}
    # These are mistakes in the page's own code, and their message says what is wrong.
    codes -= {"invalid_channel", "invalid_frame", "invalid_position", "not_subscribed", "internal"}
    assert len(codes) >= 6
    section = PAGE[PAGE.index("## A channel is refused") : PAGE.index("## Old data")]
    assert {code for code in codes if f"`{code}`" not in section} == set()


def test_the_table_at_the_top_has_every_section() -> None:
    table = PAGE.split("\n## ", maxsplit=1)[0]
    linked = re.findall(r"^\|.*\| \[([^\]]*)\]\(#", table, re.MULTILINE)
    assert linked == re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
