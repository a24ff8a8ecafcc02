"""The picture of `sockets top`: what a snapshot looks like on a page of any size."""

from __future__ import annotations

import io
import re
import unicodedata
from itertools import pairwise
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from django_sockets.hub.survey.asking import Answers
from django_sockets.observability.live.overview import GONE_SECONDS, Overview, Snapshot
from django_sockets.observability.top.picture import NOBODY, Page, Remarks, picture
from django_sockets.observability.top.screen import rich_text
from django_sockets.observability.top.tables import plain
from django_sockets.observability.top.text import (
    as_bytes,
    as_count,
    as_duration,
    as_latency,
    as_rate,
    beginning_of,
    cell_width,
    end_of,
    escaped,
    wrapped,
)
from support.pictures import NOW, answer, report, snapshot_of

WIDE = Page(200)


def lines_of(snapshot: Snapshot, page: Page = WIDE, **remarks: Any) -> list[str]:
    return [plain(line) for line in picture(snapshot, page, Remarks(**remarks))]


def section(lines: list[str], heading: str) -> list[list[str]]:
    """The heading and the rows of a section. Cells are at least two spaces apart."""
    first = next(n for n, line in enumerate(lines) if line.startswith(heading))
    rows = [*lines[first:], ""]
    return [re.split(" {2,}", row.strip()) for row in rows[: rows.index("")]]


def processes(snapshot: Snapshot, page: Page = WIDE, **remarks: Any) -> list[dict[str, str]]:
    heading, *rows = section(lines_of(snapshot, page, **remarks), "status")
    return [dict(zip(heading, row, strict=True)) for row in rows]


def many(count: int, **fields: Any) -> Snapshot:
    return snapshot_of(*(report(pid, "web", **fields) for pid in range(1, count + 1)))


# What it shows


def watched() -> Overview:
    """One process that has answered twice, 10 s apart."""
    overview = Overview("redis://:***@cache:6379")
    for seconds, published, delivered in ((3715.0, 100, 1000), (3725.0, 125, 51000)):
        numbers = {"published": published, "delivered": delivered, "gaps": 5, "publish_errors": 1}
        numbers |= {"event_streams": 2, "slow_clients": 1, "queued_bytes": 2500}
        one = report(42, "web-1", numbers=numbers, seconds=seconds)
        overview.add(Answers([answer(one, 0.25)], interrupted=False), seconds)
    return overview


def test_a_process_is_a_row_with_its_numbers_and_rates() -> None:
    assert processes(watched().snapshot(3725.0, NOW)) == [
        {
            "status": "serving",
            "process": "web-1:42",
            "age": "0s",
            "answer": "250 ms",
            "uptime": "1h 2m",
            "sockets": "12",
            "streams": "2",
            "channels": "3",
            "published/s": "2.5",
            "delivered/s": "5,000",
            "gaps": "5",
            "slow": "1",
            "queued": "2.5 kB",
            "version": "4.0.0",
        }
    ]


def test_the_totals_have_the_same_numbers() -> None:
    first, totals, *_ = lines_of(watched().snapshot(3725.0, NOW))
    assert first.startswith("redis://:***@cache:6379  1 process: 1 serving  2027-01-1")
    assert re.split(" {2,}", totals) == [
        "sockets 12",
        "streams 2",
        "published 125 (2.5/s)",
        "delivered 51,000 (5,000/s)",
        "lost 0 (0/s)",
        "gaps 5 (0/s)",
        "publish errors 1 (0/s)",
        "slow clients 1",
        "queued 2.5 kB",
    ]


def test_a_single_survey_has_no_rates() -> None:
    """A 0 would look like a process at rest."""
    snapshot = many(2, numbers={"published": 7})
    assert [row["published/s"] for row in processes(snapshot, has_rates=False)] == ["-", "-"]
    assert "published 14  delivered 0  " in lines_of(snapshot, has_rates=False)[1]


def test_a_process_without_an_answer_is_late_and_then_gone() -> None:
    overview, dead = Overview("redis://cache"), report(1, "dead")
    overview.add(Answers([answer(dead), answer(report(2))], interrupted=False), 100.0)
    seen = []
    for seconds in (2.0, GONE_SECONDS):
        overview.add(Answers([answer(report(2))], interrupted=False), 100.0 + seconds)
        first, second = processes(overview.snapshot(100.0 + seconds, NOW))
        assert (second["process"], second["status"], second["age"]) == ("web:2", "serving", "0s")
        seen.append((first["process"], first["status"], first["age"]))
        assert "2 processes: 1 " in lines_of(overview.snapshot(100.0 + seconds, NOW))[0]
    assert seen == [("dead:1", "late", "2s"), ("dead:1", "gone", "15s")]


def test_processes_do_not_look_gone_because_the_broker_was_away() -> None:
    overview, one = Overview("redis://cache"), report(1)
    overview.add(Answers([answer(one)], interrupted=False), 100.0)
    for now in (102.0, 112.0, 1000.0):
        overview.failed("away", now)
        (row,) = processes(overview.snapshot(now, NOW))
        assert (row["status"], row["sockets"]) == ("serving", "12")
        assert overview.snapshot(now, NOW)["numbers"]["sockets"] == 12
    # The process reconnects, too, and misses a question meanwhile.
    overview.add(Answers([], interrupted=True), 1002.0)
    overview.add(Answers([], interrupted=False), 1004.0)
    assert processes(overview.snapshot(1004.0, NOW))[0]["status"] == "late"
    overview.add(Answers([], interrupted=False), 1002.0 + GONE_SECONDS)
    assert processes(overview.snapshot(1002.0 + GONE_SECONDS, NOW))[0]["status"] == "gone"
    overview.add(Answers([answer(one)], interrupted=False), 1020.0)
    assert processes(overview.snapshot(1020.0, NOW))[0]["status"] == "serving"


def test_each_status_has_a_colour_of_its_own() -> None:
    overview, late = Overview("redis://cache"), report(1, "late")
    overview.add(Answers([answer(late)], interrupted=False), 0.0)
    overview.add(Answers([answer(report(2, "gone"))], interrupted=False), 86.0)
    rest = [report(3, "a", state="draining"), report(4, "b"), report(5, "c", state="ended")]
    overview.add(Answers([answer(late)], interrupted=False), 98.0)
    overview.add(Answers([*map(answer, rest)], interrupted=False), 101.0)
    styles = {
        line[0].text.strip(): line[0].style
        for line in picture(overview.snapshot(101.0, NOW), WIDE)
        if line and ":" in "".join(cell.text for cell in line[2:3])
    }
    assert styles == {
        "gone": "bad",
        "late": "warning",
        "draining": "busy",
        "serving": "good",
        "ended": "faint",
    }


def test_problems_are_said_in_the_strongest_style() -> None:
    overview = Overview("redis://cache")
    overview.add(Answers([answer(report())], interrupted=True), 1.0)
    overview.failed("redis://cache: cannot connect", 2.0)
    lines = picture(overview.snapshot(2.0, NOW), WIDE, Remarks(seconds_without_answer=65.4))
    assert [plain(line) for line in lines if line and line[0].style == "bad"] == [
        "problem: redis://cache: cannot connect",
        "The connection to the broker was lost for a moment. Processes may look late that are not.",
        "The broker has not answered for 1m 5s.",
    ]


def test_without_processes_it_says_which_ones_answer() -> None:
    assert NOBODY in lines_of(snapshot_of())
    assert NOBODY not in lines_of(snapshot_of(report()))
    away = lines_of(snapshot_of(problem="away"))
    assert "problem: away" in away
    assert NOBODY not in away
    assert "note: it stays here" in lines_of(snapshot_of(), note="note: it stays here")


def test_lists_show_the_largest_with_their_counts() -> None:
    slow = {"socket": "Chat", "user": None, "messages": 1200, "bytes": 3_400_000}
    lines = lines_of(
        snapshot_of(
            report(
                sockets={"Board": 2, "Chat": 1500},
                channels=[("lobby", 1500), ("room:1", 2)],
                users=[("ann", 3)],
                slow=[slow],
            )
        )
    )
    assert section(lines, "sockets by class")[1:] == [["1,500", "Chat"], ["2", "Board"]]
    assert section(lines, "channels by sub")[1:] == [["1,500", "lobby"], ["2", "room:1"]]
    assert section(lines, "users by conn")[1:] == [["3", "ann"]]
    assert section(lines, "slow client ") == [
        ["slow client", "messages", "class", "user", "process"],
        ["3.4 MB", "1,200", "Chat", "-", "web:7"],
    ]


# Pages


def busy(count: int = 40) -> Snapshot:
    return many(
        count,
        sockets={f"Class{n}": n + 1 for n in range(30)},
        channels=[(f"room:{n}", 90 - n) for n in range(20)],
        users=[(f"user {n}", 90 - n) for n in range(20)],
        slow=[{"socket": "Chat", "user": "ann", "messages": 1, "bytes": 1}],
        version="4.0.0.dev0",
    )


@pytest.mark.parametrize("height", [1, 2, 5, 8, 9, 10, 12, 15, 24, 40, 100, None])
@pytest.mark.parametrize("width", [1, 5, 10, 20, 40, 74, 75, 80, 120, 200])
def test_no_page_is_too_small(width: int, height: int | None) -> None:
    overview = Overview("redis+cluster://:***@" + ",".join(f"cache-{n}:6379" for n in range(20)))
    overview.failed("a long reason for which it does not answer " * 20, 0.0)
    for snapshot in (busy(), busy(1), snapshot_of(), overview.snapshot(0.0, NOW)):
        page = Page(width, height)
        lines = lines_of(snapshot, page, note="note: a note", seconds_without_answer=9)
        assert height is None or len(lines) <= height
        assert max(map(cell_width, lines)) <= width


def test_narrow_pages_have_fewer_columns_and_the_most_important_ones() -> None:
    snapshot = many(3)
    by_width = [processes(snapshot, Page(width))[0].keys() for width in (140, 100, 80, 50, 28)]
    for more, fewer in pairwise(by_width):
        assert fewer < more
    assert len(by_width[0]) == 14
    assert by_width[2] >= {"status", "process", "age", "sockets", "published/s", "delivered/s"}
    assert [*by_width[-1]] == ["status", "process", "sockets"]


def test_a_long_host_keeps_its_end_which_tells_pods_apart() -> None:
    host = "web-with-a-very-long-name-7d9f8b6c5-x2x9k"
    wide, narrow = (
        processes(snapshot_of(report(12345, host)), Page(width))[0]["process"]
        for width in (200, 60)
    )
    assert wide == f"{host}:12345"
    assert re.fullmatch(r"\.\..*-x2x9k:12345", narrow)


def test_low_pages_say_how_many_rows_are_not_shown() -> None:
    snapshot = many(40)
    rows = section(lines_of(snapshot, Page(140, 20)), "status")[1:]
    assert rows[-1] == [f"and {40 - (len(rows) - 1)} more"]
    assert len(lines_of(snapshot, Page(140, 20))) == 20
    whole = section(lines_of(snapshot, Page(140, 60)), "status")[1:]
    assert len(whole) == 40
    exactly = Page(140, 4 + 40)  # The header, the totals, an empty line, the heading, and the rows.
    assert section(lines_of(snapshot, exactly), "status")[1:] == whole


def test_a_short_section_leaves_its_room_to_the_others() -> None:
    lines = lines_of(busy(2), Page(140, 30))
    assert len(lines) == 30
    assert len(section(lines, "status")) == 1 + 2
    assert len(section(lines, "slow client ")) == 1 + 2
    assert section(lines, "sockets by class")[-1][0].startswith("and ")
    assert len(section(lines, "sockets by class")) == 30 - 2 - 4 - 4 - 1


def test_the_processes_stay_on_the_lowest_page() -> None:
    lines = lines_of(busy(), Page(140, 7))
    assert [row[0] for row in section(lines, "status")] == [
        "status",
        *["serving"] * 2,
        "and 38 more",
    ]
    assert not any(line.startswith(("sockets by", "slow client ")) for line in lines)


def test_lists_stand_side_by_side_on_a_screen_and_one_below_the_other_elsewhere() -> None:
    heading = ["sockets by class", "channels by subscribers", "users by connections"]
    assert section(lines_of(busy(), Page(120, 50)), heading[0])[0] == heading
    for page in (Page(120), Page(60, 150)):
        assert [section(lines_of(busy(), page), one)[0] for one in heading] == [
            [one] for one in heading
        ]


# Texts of others

HOSTILE = "a\x1b[2J\x1b]0;title\x07\r\nb\x9b31m\u202ec\u200bd\x7f\x00[red]e[/red]:smile:"


def hostile() -> Snapshot:
    return snapshot_of(
        report(
            host=HOSTILE,
            version=HOSTILE,
            state=HOSTILE,
            sockets={HOSTILE: 1},
            channels=[(HOSTILE, 1)],
            users=[(HOSTILE, 1)],
            slow=[{"socket": HOSTILE, "user": HOSTILE, "messages": 1, "bytes": 1}],
        ),
        problem=HOSTILE,
    )


def drawn(snapshot: Snapshot, page: Page) -> str:
    """What rich writes to a terminal that has no colours."""
    out = io.StringIO()
    console = Console(
        file=out, width=page.width, height=page.height, force_terminal=True, color_system=None
    )
    console.print(rich_text(picture(snapshot, page)))
    return out.getvalue()


@pytest.mark.parametrize("page", [Page(2000), Page(500, 60), Page(80, 24)])
def test_names_of_others_cannot_steer_the_terminal(page: Page) -> None:
    text = "\n".join(lines_of(hostile(), page))
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert [*map(str.rstrip, drawn(hostile(), page).splitlines())] == text.splitlines()
    if page.width == 2000:
        shown = r"a\x1b[2J\x1b]0;title\x07\r\nb\x9b31m\u202ec\u200bd\x7f\x00[red]e[/red]:smile:"
        assert text.count(shown) == 11


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("日本語", "日本語"),
        ("Ünïcode Привет 😀", "Ünïcode Привет 😀"),
        ("हिन्दी ภาษาไทย", "हिन्दी ภาษาไทย"),
        ("e\u0301", "e\u0301"),
        ("\u0301e", r"\u0301e"),
        ("e" + "\u0301" * 5, "e" + "\u0301" * 3 + r"\u0301\u0301"),
        ("❤\ufe0f", r"❤\ufe0f"),
        ("👍\U0001f3fd", r"👍\U0001f3fd"),
        ("👩\u200d🚀", r"👩\u200d🚀"),
        ("\ud800", r"\ud800"),
        ("\u2028", r"\u2028"),
        ("\xa0", r"\xa0"),
    ],
)
def test_letters_stay_and_the_rest_is_written_out(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert cell_width(shown) == cell_len(shown)


def test_an_encoding_without_a_character_gets_it_written_out() -> None:
    snapshot = snapshot_of(report(channels=[("über 日", 1)], users=[("日", 1)]))
    text = "\n".join(lines_of(snapshot, Page(80, 24, "latin-1")))
    assert "über \\u65e5" in text
    assert text.encode("latin-1")


def test_widths_are_those_of_rich() -> None:
    """Else a row would be longer than the screen, and push the others down."""
    blocks = [(0x20, 0x590), (0x5D0, 0x6FF), (0x900, 0x97F), (0xE00, 0xE5C), (0x1100, 0x1200)]
    blocks += [(0x2000, 0x2E7F), (0x3000, 0x33FF), (0xAC00, 0xAD00), (0xFE00, 0xFFEF)]
    blocks += [(0x1F000, 0x1F650)]
    seen = 0
    for first, behind in blocks:
        for number in range(first, behind):
            if unicodedata.category(chr(number)) == "Cn":
                continue
            shown = escaped(f"a{chr(number)}b")
            assert cell_width(shown) == cell_len(shown), hex(number)
            seen += len(shown) == 3
    assert seen > 3000


@pytest.mark.parametrize("width", range(8))
def test_wide_characters_are_cut_to_the_width(width: int) -> None:
    for text in ("日本語x", "x日本語", "abcdefgh", "e\u0301e\u0301e\u0301"):
        for cut in (beginning_of(text, width), end_of(text, width)):
            assert cell_width(cut) <= width
            assert cut == text or ".."[:width] in cut
    for line in wrapped("日本語 ab cd 日本語", max(2, width), 3):
        assert cell_width(line) <= max(2, width)


def test_a_table_with_wide_characters_stays_aligned() -> None:
    snapshot = snapshot_of(
        *(report(n, sockets={name: 1}, channels=[("c", 1)]) for n, name in enumerate(("日本", "x")))
    )
    rows = drawn(snapshot, Page(80, 24)).splitlines()
    title = next(row for row in rows if row.startswith("sockets by"))
    column = title.index("channels by")
    first = rows[rows.index(title) + 1]
    assert cell_len(first[: first.index("2  c")]) == column


# Numbers


def test_numbers_are_short() -> None:
    assert [as_count(n) for n in (0, 999, 1234567)] == ["0", "999", "1,234,567"]
    assert [as_rate(n) for n in (0.0, 0.52, 12.34, 99.9, 1234.5)] == [
        *("0", "0.5", "12.3", "99.9", "1,234")
    ]
    assert [as_bytes(n) for n in (0, 999, 1000, 999_949, 999_999, 5_300_000_000, 10**15)] == [
        *("0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "5.3 GB", "1,000.0 TB")
    ]
    assert [as_duration(n) for n in (-5, 0, 59.9, 61, 3661, 90000, 10**9)] == [
        *("0s", "0s", "59s", "1m 1s", "1h 1m", "1d 1h", "11574d 1h")
    ]
    assert [as_latency(n) for n in (None, 0.0012, 0.9, 1.25)] == ["-", "1 ms", "900 ms", "1.2 s"]
