"""Lists of presence are divided into frames that every client can take, and lose nobody."""

from __future__ import annotations

import json
from typing import Any

import pytest

from django_sockets.delivery.events import Presence
from django_sockets.delivery.presence_frames import MEMBERS_BYTES, list_frames, member_parts
from django_sockets.protocol.presence import lists_ahead

Members = dict[str, list[Any]]

CROWD: Members = {f"user {number}": [{"name": "x" * 200, "n": number}] for number in range(2000)}
TABS: Members = {"many tabs": ["x" * 1000] * 200, "a": [1], "b": [2]}
"""The first member alone is larger than a frame."""


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"a": [None]},
        {"ö": ["\u2028", "\ud800"], "big": [2**70, -(2**70)], "f": [1.5, True, {"": []}]},
        {f"k{number}": [] for number in range(200)},
        CROWD,
        TABS,
        {**CROWD, **TABS},
    ],
    ids=["none", "one", "odd values", "many small", "crowd", "tabs", "both"],
)
def test_parts_contain_each_member_once_and_are_small(members: Members) -> None:
    parts = list(member_parts(members))
    together: Members = {}
    for part in parts:
        found = json.loads(part)
        assert found
        assert not together.keys() & found.keys()
        assert len(part) <= MEMBERS_BYTES or len(found) == 1
        together.update(found)
    assert together == members
    assert list(together) == list(members)


def test_a_list_is_not_divided_more_than_needed() -> None:
    size = len(json.dumps(CROWD, separators=(",", ":")))
    assert len(list(member_parts(CROWD))) <= 1.2 * size / MEMBERS_BYTES + 1


@pytest.mark.parametrize("members", [{}, {"a": [1]}, CROWD], ids=["none", "one", "crowd"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_all_frames_of_a_list_but_the_last_say_that_more_follows(
    members: Members, is_whole: bool
) -> None:
    frames = [
        json.loads(frame.client_payload())["presence"]
        for frame in list_frames("room:1", members, is_whole=is_whole)
    ]
    assert [frame.get("more", False) for frame in frames] == [True] * (len(frames) - 1) + [
        not is_whole
    ]
    assert {key: value for frame in frames for key, value in frame["sync"].items()} == members
    assert {frame["channel"] for frame in frames} == {"room:1"}


def test_a_small_change_is_one_frame() -> None:
    change = Presence(channel='a"b', joined={"a": [1]}, left={"b": [2]}, updated={"c": [3]})
    (frame,) = change.client_frames
    assert json.loads(frame.client_payload()) == {
        "presence": {
            "channel": 'a"b',
            "joined": {"a": [1]},
            "left": {"b": [2]},
            "updated": {"c": [3]},
        }
    }
    assert change.client_frames[0] is frame


def test_joined_and_left_are_always_there() -> None:
    change = Presence(channel="a", updated={"c": [3]})
    (frame,) = change.client_frames
    assert json.loads(frame.payload)["presence"] == {
        "channel": "a",
        "joined": {},
        "left": {},
        "updated": {"c": [3]},
    }


def test_a_large_change_is_several_frames_that_are_changes_themselves() -> None:
    half = dict(list(CROWD.items())[:1000])
    rest = {key: infos for key, infos in CROWD.items() if key not in half}
    frames = Presence(channel="a", joined=half, left=rest, updated=TABS).client_frames
    assert len(frames) > 3
    found: dict[str, Members] = {"joined": {}, "left": {}, "updated": {}}
    for frame in frames:
        change = json.loads(frame.client_payload())["presence"]
        for kind, members in found.items():
            members.update(change.get(kind, {}))
    assert found == {"joined": half, "left": rest, "updated": TABS}


def test_lists_that_fit_stay_in_the_answer() -> None:
    answers = [
        {"channel": "a", "presence": {"x": [1]}},
        {"channel": "b"},
        {"channel": "c", "presence": {}},
    ]
    before = json.dumps(answers)
    assert list(lists_ahead(answers)) == []
    assert json.dumps(answers) == before


def test_one_answer_has_no_more_than_one_frame_may_have() -> None:
    quarter = dict(list(CROWD.items())[:150])
    answers = [{"channel": str(number), "presence": quarter} for number in range(10)]
    answers.append({"channel": "crowd", "presence": CROWD})
    ahead = [json.loads(frame)["presence"] for frame in lists_ahead(answers)]
    assert len(json.dumps([answer["presence"] for answer in answers])) <= 1.1 * MEMBERS_BYTES
    assert all(frame["more"] for frame in ahead)
    for answer in answers:
        parts = [frame["sync"] for frame in ahead if frame["channel"] == answer["channel"]]
        found = {key: infos for part in [*parts, answer["presence"]] for key, infos in part.items()}
        assert found == (CROWD if answer["channel"] == "crowd" else quarter)
    assert sum(bool(answer["presence"]) for answer in answers) >= 2
