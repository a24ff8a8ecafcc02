"""Rules, positions and the position field of the history."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from django_sockets.conf import Config, load_config
from django_sockets.delivery.envelope import NotOurs, Publisher, unpack, unpack_kept
from django_sockets.errors import ConfigurationError, PositionError
from django_sockets.history import (
    FIELD_BYTES,
    NO_TAG,
    HistoryRule,
    HistoryRules,
    Position,
    position_field,
    position_of,
    tag_of,
    with_field,
)
from django_sockets.url import BrokerURL

RULE = {"messages": 100, "seconds": 300}


def configured(history: object, url: str = "memory://") -> Config:
    return load_config({"url": url, "history": history})


def test_the_longest_prefix_decides() -> None:
    rules = configured(
        {
            "": {"messages": 1, "seconds": 1},
            "room:": {**RULE, "bytes": 9},
            "room:big:": {"messages": 5, "seconds": 0.5},
        }
    ).url.history
    assert rules.rule_for("other") == HistoryRule(1, 1)
    assert rules.rule_for("room") == HistoryRule(1, 1)
    assert rules.rule_for("room:1") == HistoryRule(100, 300, 9)
    assert rules.rule_for("room:big:1") == HistoryRule(5, 0.5)


def test_a_channel_of_the_library_and_one_without_a_rule_are_not_kept() -> None:
    rules = configured({"room:": RULE}).url.history
    assert rules.rule_for("lobby") is None
    assert configured({"": RULE}).url.history.rule_for("\x01control") is None
    assert configured({"": RULE}).url.history.rule_for(" room") is not None
    assert not load_config("memory://").url.history


def test_the_options_of_a_url_are_a_rule_for_all_channels() -> None:
    url = load_config("redis://h?history_messages=3&history_seconds=1.5").url
    assert url.history.rule_for("any") == HistoryRule(3, 1.5)
    both = configured({"room:": RULE}, "memory://?history_messages=3&history_seconds=1")
    assert both.url.history.rule_for("any") == HistoryRule(3, 1)
    assert both.url.history.rule_for("room:1") == HistoryRule(100, 300)


def test_equal_rules_share_a_hub_and_different_ones_do_not() -> None:
    assert configured({"a": RULE, "b": RULE}) == configured({"b": RULE, "a": dict(RULE)})
    assert hash(configured({"a": RULE})) == hash(configured({"a": RULE}))
    assert configured({"a": RULE}) != configured({"a": {**RULE, "bytes": 1}})
    assert configured({"a": RULE}) != load_config("memory://")


def test_several_hosts_have_the_same_rules() -> None:
    url = configured({"a": RULE}, "redis://one redis://two").url
    assert url.history
    assert [shard.history for shard in url.shards] == [url.history, url.history]
    with pytest.raises(ConfigurationError, match="the same for all"):
        BrokerURL.parse("redis://one?history_messages=1&history_seconds=1 redis://two")


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ([], "'history' is a dict"),
        ("room:", "'history' is a dict"),
        ({1: RULE}, "a prefix is str, not int"),
        ({"room:*": RULE}, r"leave the '\*' out, and write 'room:'"),
        ({"a\nb": RULE}, "remove the control characters"),
        ({"x" * 256: RULE}, "255 bytes"),
        ({"a": 100}, "the rule of prefix 'a' is int"),
        ({"a": {}}, "has no 'messages': add it, such as 100"),
        ({"a": {"messages": 1}}, "has no 'seconds': add it, such as 300"),
        ({"a": {**RULE, "message": 1}}, "unknown 'message'; did you mean 'messages'"),
        ({"a": {**RULE, "second": 1}}, "did you mean 'seconds'"),
        ({"a": {**RULE, "messages": 0}}, "'messages' is 0: use a whole number from 1"),
        ({"a": {**RULE, "messages": "9"}}, "'messages' is '9': use a whole number"),
        ({"a": {**RULE, "messages": True}}, "'messages' is True"),
        ({"a": {**RULE, "messages": 1.0}}, r"'messages' is 1\.0"),
        ({"a": {**RULE, "messages": 10**9}}, "from 1 to 100000"),
        ({"a": {**RULE, "seconds": 0}}, "'seconds' is 0: use a number"),
        ({"a": {**RULE, "seconds": -1}}, "'seconds' is -1"),
        ({"a": {**RULE, "seconds": math.nan}}, "'seconds' is nan"),
        ({"a": {**RULE, "seconds": math.inf}}, "'seconds' is inf"),
        ({"a": {**RULE, "seconds": "5"}}, "'seconds' is '5'"),
        ({"a": {**RULE, "seconds": False}}, "'seconds' is False"),
        ({"a": {**RULE, "bytes": 0}}, "'bytes' is 0"),
        ({"a": {**RULE, "bytes": None}}, "'bytes' is None"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_reason(history: object, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        configured(history)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("history_messages=5", "option history_seconds is missing"),
        ("history_seconds=5", "option history_messages is missing"),
        ("history_messages=0&history_seconds=5", "option history_messages: must be over 0"),
        ("history_messages=x&history_seconds=5", "option history_messages: use a whole number"),
        ("history_messages=2.5&history_seconds=5", "option history_messages: use a whole number"),
        ("history_messages=5&history_seconds=nan", "history_seconds"),
        ("history_messages=5&history_seconds=inf", "option history_seconds"),
        ("history_messages=1000000&history_seconds=5", "from 1 to 100000"),
        ("history_message=5&history_seconds=5", "option history_messages is missing"),
    ],
)
def test_a_wrong_option_is_refused_with_its_reason(options: str, problem: str) -> None:
    from django_sockets.registry import open_broker

    with pytest.raises(ConfigurationError, match=problem):
        open_broker(f"memory://?{options}")


def test_two_rules_for_all_channels_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="keep one of them"):
        configured({"": RULE}, "memory://?history_messages=3&history_seconds=1")


def test_an_unknown_setting_names_history() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'history'"):
        load_config({"url": "memory://", "histroy": {}})


# Positions


@pytest.mark.parametrize("history_id", [b"", b"12345678"])
@pytest.mark.parametrize("offset", [0, 1, 2**53 - 1])
def test_a_position_survives_as_text(history_id: bytes, offset: int) -> None:
    position = Position(bytes(range(8)), offset, bytes(range(16)), history_id)
    text = str(position)
    assert Position.parse(text) == position
    assert text.replace("-", "").replace("_", "").isalnum()
    assert text.isascii()


GOOD = str(Position(b"e" * 8, 7, b"t" * 16, b"h" * 8))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        GOOD[:-1],
        GOOD + "A",
        GOOD + "==",
        GOOD[:-1] + "/",
        " " + GOOD[1:],
        GOOD[:-1] + "é",
        GOOD[:-1] + "_",  # Another text of the same bytes.
        str(Position(b"e" * 8, 2**53, b"t" * 16)),
        GOOD.encode(),
        7,
        None,
    ],
)
def test_other_text_is_no_position(text: object) -> None:
    with pytest.raises(PositionError):
        Position.parse(text)


# The field of a kept message


@pytest.mark.parametrize("origin", [None, b"8 bytes!"])
@pytest.mark.parametrize("messages", [1, 2])
def test_the_position_field_is_the_last_one_of_the_envelope(
    origin: bytes | None, messages: int
) -> None:
    publisher = Publisher()
    for _ in range(messages):
        (header,) = publisher.headers(["room"], is_text=True, origin=origin)
    field = position_field(b"epoch678", 12, b"before of 16 b..")
    message = with_field(header) + field + b"payload"
    assert len(field) == FIELD_BYTES
    assert position_of(message) == Position(b"epoch678", 12, tag_of(header))
    assert position_of(message, b"12345678") == Position(
        b"epoch678", 12, tag_of(header), b"12345678"
    )
    assert unpack(message) == unpack(header + b"payload")
    assert unpack_kept(message) == (
        unpack(header + b"payload"),
        (b"epoch678", 12, b"before of 16 b.."),
    )
    assert unpack_kept(header + b"payload" * 20) == (unpack(header + b"payload" * 20), None)
    assert tag_of(header) == publisher.id + messages.to_bytes(8, "big")


def test_a_message_without_the_field_has_no_position() -> None:
    publisher = Publisher()
    for _ in range(2):
        (header,) = publisher.headers(["room"], is_text=True)
        assert position_of(header + b"payload" * 20) is None
    damaged = bytearray(with_field(header) + position_field(b"epoch678", 1, NO_TAG))
    damaged[-20] = 0
    assert position_of(bytes(damaged)) is None
    assert unpack_kept(bytes(damaged)) == (unpack(bytes(damaged)), None)
    with pytest.raises(NotOurs):
        unpack_kept(bytes(damaged)[:-1])
    assert position_of(b"") is None


def test_rules_can_be_made_from_objects() -> None:
    rule = HistoryRule(5, 60.0, 100)
    assert HistoryRules.parse({"a": rule}) == HistoryRules.of({"a": rule})
    assert rule.milliseconds == 60_000


def test_history_of_fakeredis_without_lua_names_the_extra() -> None:
    script = """
import sys
sys.modules["lupa"] = None
from django_sockets.errors import ConfigurationError
from django_sockets.registry import open_broker
try:
    open_broker("fakeredis://?history_messages=1&history_seconds=1")
except ConfigurationError as exc:
    print(exc)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "django-sockets[lua]" in ended.stdout
