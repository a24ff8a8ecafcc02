"""The oldest supported uvicorn has what the newest has; an older or unknown one still serves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from support.other_uvicorn import ROOT, NotAvailable, environment_with

Missing = Callable[[str], NoReturn]
OLDEST = ("uvicorn==0.52.1", "websockets==15.0")
TOO_OLD = ("uvicorn==0.52.0", "websockets==15.0")
TEST_OF_PROTOCOL = ROOT / "tests" / "servers" / "test_uvicorn.py"


def run(
    requirements: tuple[str, ...], *words: object, missing: Missing
) -> subprocess.CompletedProcess[str]:
    try:
        environment = environment_with(*requirements, path=str(ROOT / "tests"))
    except NotAvailable as exc:
        missing(str(exc))
    environment["DJANGO_SOCKETS_UVICORN"] = requirements[0].partition("==")[2]
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_the_protocol_is_the_same_on_the_oldest_supported_version(missing: Missing) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-k", "not tls")
    ended = run(OLDEST, "-m", "pytest", *options, TEST_OF_PROTOCOL, missing=missing)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout


SERVES = """
import asyncio, logging, sys

{patch}

from websockets.asyncio.client import connect
from support.raw_server import Peers, run_on, serving, soon

lines = []

class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

logging.getLogger("django_sockets").addHandler(Keep())
logging.getLogger("uvicorn.error").addHandler(Keep(logging.WARNING))

async def main():
    peers = Peers()
    async with serving(peers) as (url, server):
        for number in range(3):
            async with connect(url, proxy=None) as client:
                peer = await peers.get()
                assert peer.frames is None, peer.frames
                assert "no_context" not in client.response.headers.get(
                    "Sec-WebSocket-Extensions", ""
                ) or {may_share}
                await client.send("ping" * 300)
                assert await soon(peer.received.get()) == "ping" * 300
                await peer.send("pong" * 300)
                assert await soon(client.recv()) == "pong" * 300
                await peer.close(4000 + number)
                await soon(client.wait_closed())
                assert client.close_code == 4000 + number
                await soon(peer.ended)
        async with connect(url, proxy=None) as client:
            await peers.get()
            server.should_exit = True
            await soon(client.wait_closed())
            assert client.close_code == 1012

run_on("asyncio", main)
assert len(lines) == 1, lines
print(lines[0])
"""


def serves_without_frames(
    requirements: tuple[str, ...] | None, missing: Missing, patch: str = ""
) -> str:
    """The one line that is logged. What plain uvicorn does must still work."""
    code = SERVES.format(patch=patch, may_share=bool(patch))
    words = ("-W", "error", "-c", code)
    if requirements is not None:
        ended = run(requirements, *words, missing=missing)
    else:
        environment = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
        command = [sys.executable, *words]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=50
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "prepared frames are off" in ended.stdout
    return ended.stdout


def test_a_version_without_back_pressure_serves_plainly_and_says_so(missing: Missing) -> None:
    line = serves_without_frames(TOO_OLD, missing)
    assert "uvicorn 0.52.0 is older than 0.52.1" in line
    assert "memory for a client that stops reading has no bound" in line


IMPORT = """
from uvicorn.protocols.websockets import websockets_sansio_impl as module
Protocol = module.WebSocketsSansIOProtocol
"""
UNKNOWN = {
    "no pause_writing": "del Protocol.pause_writing",
    "run_asgi with an argument": """
class Own(Protocol):
    async def run_asgi(self, scope): await Protocol.run_asgi(self)
    def handle_connect(self, event):
        run = self.run_asgi
        self.run_asgi = lambda: run(self.scope)
        super().handle_connect(event)
module.WebSocketsSansIOProtocol = Own
""",
    "another name for run_asgi": """
handle_connect = Protocol.handle_connect
Protocol.run_app = Protocol.run_asgi
def later(self, event):
    self.run_asgi = self.run_app
    handle_connect(self, event)
Protocol.handle_connect = later
del Protocol.run_asgi
""",
    "another type of writable": """
init = Protocol.__init__
class Other:
    def __init__(self): self.event = asyncio.Event()
    def set(self): self.event.set()
    def clear(self): self.event.clear()
    async def wait(self): await self.event.wait()
def other(self, *args, **kwargs):
    init(self, *args, **kwargs)
    self.writable = Other()
    self.writable.set()
Protocol.__init__ = other
""",
    "another way to pause": "Protocol.pause_writing = lambda self: None",
    "pausing fails": """
def fails(self): raise RuntimeError("not today")
Protocol.pause_writing = fails
""",
    "send with two arguments": """
send = Protocol.send
async def with_two(self, message, more): ...
class Sends:
    def __get__(self, instance, owner):
        return with_two if instance is None else send.__get__(instance)
Protocol.send = Sends()
""",
}
RENAMED = """
import re
from pathlib import Path
source = Path(module.__file__).read_text()
assert "self.{name}" in source
exec(re.sub(r"self\\.{name}\\b", "self.new_{name}", source), module.__dict__)
"""
UNKNOWN.update(
    (f"another name for {name}", RENAMED.format(name=name))
    for name in ("conn", "transport", "scope", "writable")
)


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_uvicorn_serves_plainly_and_says_so_once(name: str, missing: Missing) -> None:
    line = serves_without_frames(None, missing, IMPORT + UNKNOWN[name])
    assert "is not known" in line


CHECK = ("-m", "django_sockets", "check", "--server")


def test_the_check_names_a_version_that_is_too_old(missing: Missing) -> None:
    ended = run(TOO_OLD, *CHECK, missing=missing)
    assert ended.returncode == 1
    row, warning = ended.stdout.splitlines()[:2]
    assert "uvicorn 0.52.0    no prepared frames: uvicorn 0.52.0 is older than 0.52.1" in row
    assert warning.startswith("warning")
    assert "memory for a client that stops reading has no bound" in warning
    assert "upgrade uvicorn to 0.52.1" in warning
    oldest = run(OLDEST, *CHECK, missing=missing)
    assert oldest.returncode == 0
    assert "uvicorn 0.52.1    prepared frames: with --ws django_sockets" in oldest.stdout
