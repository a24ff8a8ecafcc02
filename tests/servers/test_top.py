"""`sockets top` shows what real server processes do, in a terminal and to programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from django_sockets import open_hub
from django_sockets.__main__ import main
from django_sockets.observability.live.watching import snapshots
from django_sockets.testing.servers import CacheServer, ValkeyServer, free_port
from support.faults.processes import ServerProcess, serve
from support.raw_server import soon

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo terminals", allow_module_level=True)

from support.terminal import ENTERED, HIDDEN, LEFT, SHOWN, TerminalProcess, in_terminal

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "django_sockets", "top"]
CLASSES = ("Chat", "Board")
SOURCE = """
import json, os
from django_sockets import local_hubs
from django_sockets.sockets import BaseSocketServer

class Member(BaseSocketServer):
    config = os.environ["BROKER"]

    async def connect(self):
        self.tags = {"user": "ann \\x1b[2J[red]"}
        await self.async_subscribe(["lobby", "room\\u4e2d"])
        await self.async_send("ready")

    async def receive(self, data):
        if data == "stats":
            await self.async_send([dict(hub.stats()) for hub in local_hubs()])
        else:
            await self.async_broadcast("lobby", data)

Chat = type("Chat", (Member,), {})
Board = type("Board", (Member,), {})

async def application(scope, receive, send):
    kind = Chat if scope["path"] == "/Chat" else Board
    await kind.as_asgi(scope, receive, send)
"""


def environment(**more: str) -> dict[str, str]:
    names = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return {**clean, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **more}


class Site:
    """Two server processes, and their clients."""

    def __init__(self, url: str, servers: list[ServerProcess], clients: list[Any]) -> None:
        self.url, self.servers, self.clients = url, servers, clients

    async def stats(self) -> list[dict[str, int]]:
        """The numbers of each process, from its own hub."""
        found = []
        for client in self.clients[:2]:
            await client.send('"stats"')
            (numbers,) = json.loads(await soon(client.recv()))
            found.append(numbers)
        return found


@contextlib.asynccontextmanager
async def site(url: str, folder: Path) -> AsyncIterator[Site]:
    """Two processes: the first has a Chat and a Board, the second one a Board."""
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for name in ("first", "second"):
            (folder / name).mkdir()
            path = os.pathsep.join([str(folder / name), str(ROOT)])
            server = serve("uvicorn", SOURCE, folder / name, BROKER=url, PYTHONPATH=path)
            servers.append(await stack.enter_async_context(server))
        clients = []
        for server, path in ((servers[0], "/Chat"), (servers[1], "/Board"), (servers[0], "/Board")):
            client = await server.connect(path)
            stack.push_async_callback(client.close)
            assert json.loads(await soon(client.recv())) == "ready"
            clients.append(client)
        # A process answers from a second after its first connection on.
        hub = await stack.enter_async_context(open_hub(url))
        pictures = snapshots(hub, interval_seconds=0.2, window_seconds=0.2)
        async with contextlib.aclosing(pictures):  # type: ignore[type-var]
            async for picture in pictures:
                if len(picture["processes"]) == len(servers):
                    break
        yield Site(url, servers, clients)


@contextlib.asynccontextmanager
async def top(url: str, *options: str, **terminal: Any) -> AsyncIterator[TerminalProcess]:
    command = [*COMMAND, url, "--interval", "1", *options]
    async with in_terminal(command, environment(), **terminal) as running:
        yield running


def once(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, url, "--once", *options],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def status_of(picture: str, pid: int) -> str:
    found = re.search(rf"^(\w+) .*:{pid} ", picture, re.MULTILINE)
    return found[1] if found else "absent"


# In a terminal


@pytest.mark.timeout(150)
async def test_a_stopped_process_is_late_and_comes_back_and_a_killed_one_is_gone(
    valkey_server: CacheServer, tmp_path: Path
) -> None:
    async with site(valkey_server.url, tmp_path) as running:
        first, second = (server.process.pid for server in running.servers)
        async with top(running.url) as terminal:

            def is_status(pid: int, status: str) -> Callable[[str], bool]:
                return lambda picture: status_of(picture, pid) == status

            picture = await terminal.until(lambda picture: "2 processes: 2 serving" in picture)
            assert status_of(picture, first) == status_of(picture, second) == "serving"
            os.kill(first, signal.SIGSTOP)
            picture = await terminal.until(is_status(first, "late"))
            assert "1 late" in picture
            os.kill(first, signal.SIGCONT)
            await terminal.until(is_status(first, "serving"))
            os.kill(second, signal.SIGKILL)
            await terminal.until(is_status(second, "late"))
            picture = await terminal.until(is_status(second, "gone"))
            assert re.search(rf"^gone .*:{second} +[1-9]\ds ", picture, re.MULTILINE), picture
            # The sockets of the first process are left.
            picture = await terminal.until(lambda picture: ": 1 gone, 1 serving" in picture)
            assert "sockets 2 " in picture


async def test_the_screen_shows_names_and_follows_the_size_of_the_terminal(
    valkey_server: CacheServer, tmp_path: Path
) -> None:
    async with (
        site(valkey_server.url, tmp_path) as running,
        top(running.url, width=130, height=30) as terminal,
    ):
        lists = await terminal.until(lambda picture: "3  room中" in picture)
        assert re.search(r"2  Board +3  lobby +3  ann \\x1b\[2J\[red\]", lists)
        assert "delivered/s" in lists
        assert "\x1b[2J" not in terminal.written
        terminal.resize(40, 12)
        row = re.compile(r"^serving +\S+:\d+ +0s +\d$", re.MULTILINE)
        small = await terminal.until(row.search)
        assert all(len(line) <= 40 for line in small.splitlines())


@contextlib.asynccontextmanager
async def idle(**terminal: Any) -> AsyncIterator[TerminalProcess]:
    """A screen that needs no server, with its first picture."""
    async with top("memory://", **terminal) as running:
        picture = await running.until(lambda picture: "No process has answered." in picture)
        assert "note: memory:// stays inside this process" in picture
        yield running


def assert_restored(terminal: TerminalProcess) -> None:
    assert terminal.written.count(ENTERED) == terminal.written.count(LEFT)
    assert terminal.written.rindex(LEFT) > terminal.written.rindex(ENTERED)
    assert terminal.written.rindex(SHOWN) > terminal.written.rindex(HIDDEN)
    assert terminal.modes == terminal.modes_before
    assert "Traceback" not in terminal.written


async def test_ctrl_c_ends_with_130_and_restores_the_terminal() -> None:
    async with idle() as terminal:
        terminal.type("\x03")
        assert await terminal.ended() == 130
        assert_restored(terminal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_that_ends_it_restores_the_terminal_first(number: signal.Signals) -> None:
    async with idle() as terminal:
        terminal.process.send_signal(number)
        assert await terminal.ended() == -number
        assert_restored(terminal)


async def test_ctrl_z_gives_the_terminal_back_until_it_goes_on() -> None:
    async with idle(is_job=True) as terminal:
        for _ in range(2):
            terminal.process.send_signal(signal.SIGTSTP)
            await terminal.stopped()
            await terminal.until_written(LEFT)
            assert_restored(terminal)
            terminal.written = ""
            terminal.process.send_signal(signal.SIGCONT)
            await terminal.until_written("No process has answered.")
            assert ENTERED in terminal.written
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.ended() == 130
        assert_restored(terminal)


async def test_an_error_restores_the_terminal() -> None:
    program = """
import sys
from django_sockets.observability.top import command
from django_sockets.__main__ import main
def broken(*_):
    raise ZeroDivisionError("planted")
command.picture = broken
sys.exit(main(["top", "memory://"]))
"""
    async with in_terminal([sys.executable, "-c", program], environment()) as terminal:
        assert await terminal.ended() == 1
        assert terminal.written.index(LEFT) < terminal.written.rindex("planted")
        assert terminal.written.rindex(SHOWN) > terminal.written.rindex(HIDDEN)


async def test_a_broker_that_is_away_is_a_problem_until_it_is_back() -> None:
    server = ValkeyServer()
    with server:
        url = f"{server.url}?subscribe_timeout_seconds=0.5"
        server.kill()
        async with top(url) as terminal:
            picture = await terminal.until(lambda picture: "problem: " in picture)
            assert "cannot connect" in picture
            server.restart()
            await terminal.until(
                lambda picture: "No process has answered" in picture and "problem" not in picture
            )
            terminal.type("\x03")
            assert await terminal.ended() == 130
            assert_restored(terminal)


async def test_waiting_for_the_broker_is_said_before_it_is_given_up() -> None:
    url = f"redis://127.0.0.1:{free_port()}?subscribe_timeout_seconds=60"
    async with top(url) as terminal:
        picture = await terminal.until(lambda picture: "The broker has not answered" in picture)
        assert "problem: " not in picture


# Plain text and JSON

WITHOUT_RICH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from django_sockets.__main__ import main
sys.exit(main(["top", *sys.argv[1:]]))
"""


async def test_without_rich_a_terminal_gets_blocks_of_plain_text(
    valkey_server: CacheServer, tmp_path: Path
) -> None:
    async with site(valkey_server.url, tmp_path) as running:
        command = [sys.executable, "-c", WITHOUT_RICH, running.url, "--interval", "1"]
        async with in_terminal(command, environment(), width=90) as terminal:
            await terminal.until_written("users by connections", times=2)
            terminal.type("\x03")
            assert await terminal.ended() == 130
        lines = terminal.written.replace("^C", "").split("\r\n")
        assert all(character.isprintable() for line in lines for character in line)
        assert max(map(len, lines)) <= 90
        first, second, *_ = "\n".join(lines).split("\n\nredis://")
        for block in (first, second):
            assert "2 processes: 2 serving" in block
            assert [status_of(block, one.process.pid) for one in running.servers] == ["serving"] * 2


async def test_a_terminal_without_an_alternate_screen_gets_plain_text() -> None:
    command = [*COMMAND, "memory://", "--interval", "1"]
    async with in_terminal(command, environment(TERM="dumb")) as terminal:
        await terminal.until_written("memory://  0 processes  ", times=2)
        assert "\x1b" not in terminal.written


def test_a_pipe_gets_blocks_of_plain_text() -> None:
    with subprocess.Popen(
        [*COMMAND, "memory://", "--interval", "1"],
        env=environment(FORCE_COLOR="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(2):
            block = list(iter(process.stdout.readline, "\n"))
            assert block[0].startswith("memory://  0 processes  20")
            assert all(line[:-1].isprintable() for line in block)
        process.stdout.close()  # As `head` does.
        assert process.wait(60) == 141
        assert process.stderr.read().count("\n") == 1  # The note about memory://.


async def test_one_survey_has_the_numbers_of_the_hubs(
    valkey_server: CacheServer, tmp_path: Path
) -> None:
    async with site(valkey_server.url, tmp_path) as running:
        for number in range(5):
            await running.clients[0].send(json.dumps(number))
            for client in running.clients:
                assert json.loads(await soon(client.recv())) == number
        found = await survey(running.url)
        stats = await running.stats()
    assert found["ok"] is True
    assert found["broker"] == running.url
    rows = {row["pid"]: row for row in found["processes"]}
    assert rows.keys() == {server.process.pid for server in running.servers}  # Not `top` itself.
    for server, numbers in zip(running.servers, stats, strict=True):
        row = rows[server.process.pid]
        assert row["status"] == "serving"
        # The answer is published, and asking for the numbers delivers nothing.
        assert row["numbers"] | {"published": row["numbers"]["published"] + 1} == numbers
    assert found["sockets"] == {"Board": 2, "Chat": 1}
    assert found["channels"] == [["lobby", 3], ["room中", 3]]
    assert found["users"] == [["ann \x1b[2J[red]", 3]]
    assert found["numbers"]["sockets"] == 3


async def survey(url: str) -> Any:
    ended = await asyncio.to_thread(once, url, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    (line,) = ended.stdout.splitlines()
    return json.loads(line)


def test_json_lines_go_on_until_ctrl_c() -> None:
    with subprocess.Popen(
        [*COMMAND, "memory://", "--json", "--interval", "1"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert first["processes"] == []  # Not `top` itself.
        assert second["time"] > first["time"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_one_survey_of_a_broker_that_is_away_is_an_error(form: list[str]) -> None:
    url = f"redis://127.0.0.1:{free_port()}?subscribe_timeout_seconds=0.5"
    ended = once(url, *form)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: redis://127.0.0.1:")
    if form:
        assert json.loads(ended.stdout)["ok"] is False
    else:
        assert ended.stdout == ""


@pytest.mark.parametrize("interval", ["0", "0.99", "-1", "nan", "inf", "3601", "soon", ""])
def test_an_interval_out_of_range_is_wrong_usage(
    interval: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["top", "memory://", f"--interval={interval}"])
    assert caught.value.code == 2
    assert f"{interval!r} is not a number of seconds from 1 to 3600" in capsys.readouterr().err
