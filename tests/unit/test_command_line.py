"""`python -m django_sockets`: its output, its errors and its exit status."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from django_sockets import open_hub
from django_sockets.__main__ import main
from django_sockets.history import Position
from django_sockets.testing.servers import CacheServer, ValkeyServer, free_port

COMMAND = [sys.executable, "-m", "django_sockets"]
PASSWORD = "opensesame"
WAIT_SECONDS = 10


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DJANGO_SETTINGS_MODULE", "DJANGO_SOCKETS_URL")
    }
    ended = subprocess.run(
        [*COMMAND, *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr
    return ended


@pytest.fixture(scope="module")
def locked_server(valkey_server: CacheServer) -> Iterator[CacheServer]:
    """A server that asks for a password."""
    with ValkeyServer(password=PASSWORD) as server:
        yield server


@pytest.fixture
def nobody() -> str:
    """A URL at which nothing listens."""
    return f"redis://127.0.0.1:{free_port()}"


class Tail:
    """A running `tail` that has subscribed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def json(self) -> Any:
        return json.loads(self.line())


@contextmanager
def tail(*arguments: str) -> Iterator[Tail]:
    with subprocess.Popen(
        [*COMMAND, "tail", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("subscribed to "):
                    break
            else:
                pytest.fail("tail ended before it had subscribed")
            yield Tail(process)
        finally:
            process.kill()


# check


def test_check_tells_a_usable_server_by_status_and_verdict(locked_server: CacheServer) -> None:
    ended = run("check", locked_server.url)
    assert ended.returncode == 0
    rows = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines())
    assert rows["broker"].startswith("redis://:***@127.0.0.1")
    assert rows["server"].startswith("valkey 9")
    assert "role: primary" in rows["features"]
    assert "payload: at most 16777216 bytes" in rows["limits"]
    assert rows["verdict"] == "usable"
    assert ended.stderr == ""
    assert "\x1b" not in ended.stdout


def test_check_for_programs_is_one_object(valkey_server: CacheServer) -> None:
    ended = run("check", "--json", valkey_server.url)
    assert ended.returncode == 0
    found = json.loads(ended.stdout)
    assert found["ok"] is True
    assert found["problem"] is None
    assert found["broker"] == valkey_server.url
    assert found["server"].startswith("valkey 9")
    assert found["topology"] == "one node"
    assert 0 < found["round_trip_ms"] < 1000
    assert 0 < found["connect_ms"] < 5000
    assert found["features"]["sharded pub/sub"] == "yes"


def test_check_passes_on_what_the_broker_warns_of() -> None:
    ended = run("check", "memory://")
    assert ended.returncode == 0
    assert "warning     other processes receive nothing" in ended.stdout
    assert ended.stdout.splitlines()[-1].split(maxsplit=1) == [
        "verdict",
        "usable, mind the warnings",
    ]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_check_of_a_dead_server(nobody: str, form: list[str]) -> None:
    ended = run("check", nobody, *form)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"not usable: {nobody}: cannot connect")
    if form:
        found = json.loads(ended.stdout)
        assert found["ok"] is False
        assert found["problem"].startswith(f"{nobody}: cannot connect")


def test_check_of_a_server_that_wants_a_password_says_where_to_write_it(
    locked_server: CacheServer,
) -> None:
    ended = run("check", f"redis://127.0.0.1:{locked_server.port}")
    assert ended.returncode == 1
    assert "wants a password: write redis://:password@" in ended.stderr


def test_check_of_a_replica_is_not_usable(valkey_server: CacheServer) -> None:
    with ValkeyServer(config={"replicaof": f"127.0.0.1 {valkey_server.port}"}) as replica:
        ended = run("check", replica.url)
    assert ended.returncode == 1
    assert "is a replica, and messages" in ended.stderr
    assert "verdict" not in ended.stdout


def test_check_of_a_wrong_password(locked_server: CacheServer) -> None:
    ended = run("check", f"redis://:not-{PASSWORD}@127.0.0.1:{locked_server.port}")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("not usable: redis://:***@")
    assert "refused the credentials" in line


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (f"reddis://:{PASSWORD}@localhost", "unknown scheme 'reddis'; did you mean 'redis'?"),
        ("redis://localhost?prefx=a", "unknown option 'prefx'; did you mean 'prefix'?"),
        ("localhost:6379", "has no scheme"),
    ],
)
def test_a_wrong_url_is_another_status_than_a_dead_server(
    url: str, complaint: str, form: list[str]
) -> None:
    ended = run("check", url, *form)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert complaint in line
    if form:
        found = json.loads(ended.stdout)
        assert found["ok"] is False
        assert complaint in found["problem"]


def test_check_without_a_url_says_where_it_looked(tmp_path: Path) -> None:
    (tmp_path / "with_setting.py").write_text('DJANGO_SOCKETS_CONFIG = "memory://setting"')
    (tmp_path / "without.py").write_text("")
    (tmp_path / "broken.py").write_text("import no_such_module")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))

    def row(**environment: str) -> str:
        return run("check", PYTHONPATH=path, **environment).stdout.splitlines()[0]

    by_environment = {"DJANGO_SOCKETS_URL": "memory://environment"}
    assert "memory:// (the built-in default)" in row()
    assert "memory://environment (from the environment variable" in row(**by_environment)
    assert "memory://setting (from Django's setting DJANGO_SOCKETS_CONFIG)" in row(
        DJANGO_SETTINGS_MODULE="with_setting", **by_environment
    )
    assert "memory://environment" in row(DJANGO_SETTINGS_MODULE="without", **by_environment)

    broken = run("check", PYTHONPATH=path, DJANGO_SETTINGS_MODULE="broken")
    assert broken.returncode == 2
    assert broken.stderr.startswith("error: Django's settings cannot be loaded: ")
    assert "no_such_module" in broken.stderr


# publish and tail


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_what_is_published_arrives_at_tail(valkey_server: CacheServer, form: list[str]) -> None:
    url, data = valkey_server.url, {"hello": [1, "é"]}
    with tail(url, "quiet", "room:1", "--count", "2", *form) as running:
        for number in (1, 2):
            ended = run("publish", url, "room:1", json.dumps(data), *form)
            assert ended.returncode == 0
            assert ended.stderr == ""
            # Before the second one is published: each line comes as soon as its message.
            line = running.line()
            if form:
                result = json.loads(ended.stdout)
                size = len('{"hello": [1, "é"]}'.encode())
                assert result == {
                    "ok": True,
                    "broker": url,
                    "channel": "room:1",
                    "payload_bytes": size,
                }
                message = json.loads(line)
                assert message.pop("time")
                assert message == {"event": "message", "channel": "room:1", "data": data}, number
            else:
                assert ended.stdout.startswith("published to 'room:1' on redis://")
                assert line.endswith(' room:1: {"hello": [1, "é"]}\n')
        assert running.line() == ""
        assert running.process.wait(WAIT_SECONDS) == 0


async def test_tail_keeps_foreign_bytes_apart_from_data(valkey_server: CacheServer) -> None:
    url = valkey_server.url
    with tail(url, "c", "--json") as for_programs, tail(url, "c") as for_people:
        async with open_hub(url) as hub:
            await hub.publish("c", b"plain words")
            await hub.publish("c", b"\x1b[2J\xff\n")
        assert for_programs.json()["text"] == "plain words"
        assert for_programs.json()["base64"] == "G1sySv8K"
        assert for_people.line().endswith(" c: plain words\n")
        # Nothing that arrives may steer the terminal.
        assert for_people.line().endswith(" c: \\x1b[2J\\xff\\n\n")


def test_tail_shows_a_gap_where_messages_may_be_missing(fresh_valkey_server: CacheServer) -> None:
    url = fresh_valkey_server.url
    with tail(url, "a", "b", "--json") as for_programs, tail(url, "a", "b") as for_people:
        fresh_valkey_server.execute("CLIENT", "KILL", "TYPE", "pubsub")
        gap = for_programs.json()
        assert (gap["event"], gap["channels"]) == ("gap", ["a", "b"])
        assert gap["reason"]
        assert "GAP on a, b: messages may be missing here" in for_people.line()
        run("publish", url, "b", "1")
        assert for_programs.json()["data"] == 1


@pytest.mark.parametrize("broker", ["memory://", "valkey"])
def test_ctrl_c_ends_tail_with_130(broker: str, request: pytest.FixtureRequest) -> None:
    if broker == "valkey":
        broker = request.getfixturevalue("valkey_server").url
    with tail(broker, "c") as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.stderr is not None
        assert running.process.stderr.read() == ""
        assert running.process.wait(WAIT_SECONDS) == 130


def test_tail_ends_quietly_when_its_output_is_closed(valkey_server: CacheServer) -> None:
    with tail(valkey_server.url, "c") as running:
        assert running.process.stdout is not None
        assert running.process.stderr is not None
        running.process.stdout.close()
        run("publish", valkey_server.url, "c", "1")
        assert running.process.wait(WAIT_SECONDS) == 141
        assert running.process.stderr.read() == ""


@pytest.mark.parametrize("arguments", [["publish", "1"], ["tail"]])
def test_a_dead_server_is_one_line_and_status_1(nobody: str, arguments: list[str]) -> None:
    name, *data = arguments
    ended = run(name, f"{nobody}?subscribe_timeout_seconds=0.5", "room:1", *data)
    assert ended.returncode == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {nobody}: ")


def test_a_failed_publish_is_an_object_for_programs(nobody: str) -> None:
    ended = run("publish", "--json", nobody, "room:1", "1")
    assert ended.returncode == 1
    result = json.loads(ended.stdout)
    assert result["ok"] is False
    assert "not published to 'room:1'" in result["problem"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["publish", "memory://", "c", "hello"], "'hello' is not JSON: "),
        (["publish", "memory://", "c", '{"a": NaN}'], "NaN is not JSON"),
        (["publish", "memory://", "", "1"], "channel '' is empty"),
        (["publish", "memory://", "room:*", "1"], "no wildcard subscriptions"),
        (["publish", "memory://?max_payload_bytes=3", "c", '"long"'], "over the limit of 3 bytes"),
        (["publish", "reddis://", "c", "1"], "unknown scheme 'reddis'"),
        (["tail", "memory://"], "required: CHANNEL"),
        (["tail", "memory://", "room:*"], "no wildcard subscriptions"),
        (["tail", "memory://", "c", "--count", "0"], "'0' is not a whole number over 0"),
        (["chekc"], "invalid choice: 'chekc'"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_wrong(
    arguments: list[str], complaint: str
) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert complaint in ended.stderr.splitlines()[-1]


def test_a_broker_inside_the_process_causes_a_warning() -> None:
    assert "no other process takes part" in run("publish", "memory://", "c", "1").stderr


# history

RULE = "history_messages=10&history_seconds=60"


Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command in this process, which takes a tenth of the time."""

    def run_here(*arguments: str) -> Ended:
        try:
            status = main([*arguments])
        except SystemExit as exc:
            status = int(exc.code or 0)
        out, err = capsys.readouterr()
        return Ended([], status, out, err)

    return run_here


def test_the_kept_messages_of_a_channel_are_printed(
    valkey_server: CacheServer, here: Callable[..., Ended]
) -> None:
    url = f"{valkey_server.url}?{RULE}"
    for data in ("1", '"two"', '{"three": 3}'):
        here("publish", url, "kept", data)
    here("publish", url, "other", "4")
    ended = here("history", url, "kept")
    *lines, last = [line.split(" ", 1) for line in ended.stdout.splitlines()]
    assert [text for _, text in lines] == ["1", '"two"', '{"three": 3}']
    assert last == ["3", f"messages; position {lines[-1][0]}"]
    assert (ended.stderr, ended.returncode) == ("", 0)
    read = json.loads(here("history", url, "kept", "--json").stdout)
    assert [message["data"] for message in read["messages"]] == [1, "two", {"three": 3}]
    assert [message["position"] for message in read["messages"]] == [at for at, _ in lines]
    assert (read["ok"], read["recovered"], read["more"]) == (True, True, False)
    assert (read["channel"], read["position"]) == ("kept", lines[-1][0])
    for form in (["--since", lines[0][0]], [f"--since={lines[0][0]}"]):
        behind = here("history", url, "kept", *form, "--limit", "1")
        assert behind.stdout.splitlines() == [
            f'{lines[1][0]} "two"',
            f"1 messages; position {lines[1][0]}; more behind it",
        ]
    newest = here("history", url, "kept", "--limit", "1")
    assert newest.stdout.splitlines()[0] == f'{lines[2][0]} {{"three": 3}}'


def test_a_position_that_begins_with_a_dash_is_one(
    valkey_server: CacheServer, here: Callable[..., Ended]
) -> None:
    url = f"{valkey_server.url}?{RULE}"
    other = str(Position(b"\xf8" + bytes(7), 1, bytes(16)))
    assert other.startswith("-")
    read = here("history", url, "dashed", "--json", "--since", other)
    assert json.loads(read.stdout)["recovered"] is False
    ended = here("history", url, "dashed", "--since", other)
    assert "not kept any more" in ended.stderr
    assert ended.stdout.startswith("0 messages; position ")
    assert ended.returncode == 0


def test_binary_and_control_characters_are_printed_as_one_line(
    valkey_server: CacheServer, here: Callable[..., Ended]
) -> None:
    url = f"{valkey_server.url}?{RULE}"

    async def publish() -> None:
        async with open_hub(url) as hub:
            await hub.publish("binary", b"\x1b[2J\n\xff")
            await hub.publish("binary", b"plain words")

    asyncio.run(publish())
    ended = here("history", url, "binary")
    assert [line.split(" ", 1)[1] for line in ended.stdout.splitlines()] == [
        "\\x1b[2J\\n\\xff",
        "plain words",
        f"messages; position {ended.stdout.split()[-1]}",
    ]
    messages = json.loads(here("history", url, "binary", "--json").stdout)["messages"]
    assert messages[0]["base64"] == "G1sySgr/"
    assert messages[1]["text"] == "plain words"


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["memory://", "room:1"], 2, "add history_messages=100&history_seconds=300"),
        ([f"memory://?{RULE}", "room:1", "--since", "x"], 2, "not a position"),
        ([f"memory://?{RULE}", "room:*"], 2, "no wildcard subscriptions"),
        ([f"memory://?{RULE}", "room:1", "--limit", "0"], 2, "not a whole number over 0"),
        ([f"memory://?{RULE}", "room:1", "--limit", "10001"], 2, "from 1 to 10000"),
        ([f"memory://?{RULE}"], 2, "CHANNEL"),
    ],
)
def test_a_history_that_cannot_be_read(
    arguments: list[str], status: int, problem: str, here: Callable[..., Ended]
) -> None:
    ended = here("history", *arguments)
    assert ended.returncode == status
    assert problem in ended.stderr


def test_a_history_that_is_away_is_an_object_for_programs(
    nobody: str, here: Callable[..., Ended]
) -> None:
    ended = here("history", f"{nobody}?{RULE}", "kept", "--json")
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["ok"] is False


def test_tail_shows_positions_to_programs(valkey_server: CacheServer) -> None:
    url = f"{valkey_server.url}?{RULE}"
    with tail("--json", url, "positions", "--count", "1") as tailing:
        run("publish", url, "positions", "1")
        line = tailing.json()
    read = json.loads(run("history", url, "positions", "--json").stdout)
    assert line["position"] == read["position"]
