"""The kinds of peers, and the environment of each.

The environments are created on first use and kept in `benchmarks/.cache`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from . import compiler

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "benchmarks" / ".cache"
APPS = ROOT / "benchmarks" / "peers"
SERVER = ("uvicorn", "uvloop", "websockets", "hiredis")
UVICORN_PROTOCOL = "websockets-sansio"
UVICORN = (
    "--loop uvloop --ws-ping-interval 0 --backlog 4096 --lifespan off --log-level error"
).split()
LIST_PACKAGES = """
import importlib.metadata, json, platform
found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **found}))
"""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library to compare with: an ASGI application under uvicorn.

    Attributes:
        key: its name on the command line.
        app: its module in `benchmarks/peers`; "" if it is only measured inside a process.
        environment: the name of its environment; "" for the current one.
        packages: the packages of the environment besides the server.
        wire: the name of its function in `wire`; "" for the key.
        protocol: uvicorn's class for websockets, its argument `--ws`.
        share: its share of the messages that the other peers get; below 1 for a slow peer.
        compresses_each: it compresses a message for each socket again.
        most_joining: the most sockets of a connect storm; more would take a minute.
        greets: whether it sends a frame after it has subscribed.
        most_runs: it takes part in that many runs; a slow peer needs no more for its one bound.
        leaves_out_sender: one of its sockets is left out of every message.
    """

    name: str
    key: str
    app: str = ""
    environment: str = ""
    packages: tuple[str, ...] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    wire: str = ""
    protocol: str = UVICORN_PROTOCOL
    share: float = 1.0
    compresses_each: bool = True
    most_joining: int = 10_000
    greets: bool = True
    most_runs: int = 1000
    leaves_out_sender: bool = False

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self._home / "bin" / "python" if self.environment else Path(sys.executable)

    @property
    def _home(self) -> Path:
        return CACHE / self.environment

    def missing(self) -> str:
        """The programs that this machine lacks to run the peer; "" if it lacks none."""
        return ""

    def install(self) -> None:
        """Create its environment if it does not exist."""
        done = self._home / "installed"
        if not self.environment or done.exists():
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self._home)], check=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", *self.packages, *SERVER]
        # In the checkout pip would take this package's metadata for an installed package.
        subprocess.run(pip, check=True, cwd=self._home)
        done.touch()

    def versions(self) -> dict[str, str]:
        """Package -> version in its environment."""
        command = [str(self.python), "-c", LIST_PACKAGES]
        found: dict[str, str] = json.loads(subprocess.check_output(command, cwd=CACHE))
        return dict(sorted(found.items(), key=lambda item: item[0].lower()))

    def command(self, port: int, *, deflate: bool) -> list[str]:
        """The command that serves it on a port, with or without compression."""
        where = ["--app-dir", str(APPS), "--port", str(port)]
        how = ["--ws", self.protocol, "--ws-per-message-deflate", str(deflate).lower()]
        return [str(self.python), "-m", "uvicorn", f"{self.app}:app", *where, *how, *UVICORN]

    def environ(self) -> dict[str, str]:
        """The environment variables of its server's process."""
        inherited = dict(os.environ)
        if self.environment:
            inherited.pop("PYTHONPATH", None)  # It may lead to this package.
        return {**inherited, **self.variables}


class NodePeer(Peer):
    """A peer that is a program for node."""

    def missing(self) -> str:
        return "" if shutil.which("node") and shutil.which("npm") else "no node and npm on PATH"

    def install(self) -> None:
        done = self._home / "installed"
        if done.exists():
            return
        self._home.mkdir(parents=True, exist_ok=True)
        npm = "npm install --silent --no-audit --no-fund --prefix".split()
        subprocess.run([*npm, str(self._home), *self.packages], check=True)
        done.touch()

    def versions(self) -> dict[str, str]:
        node = subprocess.check_output(["node", "--version"], text=True).strip()
        manifests = [self._modules / name / "package.json" for name in self.packages]
        found = [json.loads(path.read_text()) for path in manifests]
        return {"node": node, **{package["name"]: package["version"] for package in found}}

    def command(self, port: int, *, deflate: bool) -> list[str]:
        return ["node", str(APPS / self.app), str(port), *(["deflate"] if deflate else [])]

    def environ(self) -> dict[str, str]:
        return {**super().environ(), "NODE_ENV": "production", "NODE_PATH": str(self._modules)}

    @property
    def _modules(self) -> Path:
        return self._home / "node_modules"


class CompiledPeer(Peer):
    """A peer that is a program in C; its app is the name of its sources, separated by spaces."""

    def missing(self) -> str:
        if sys.platform != "linux":
            return "epoll exists only on Linux"
        return compiler.missing()

    def install(self) -> None:
        self._program()

    def versions(self) -> dict[str, str]:
        return {"cc": compiler.version()}

    def command(self, port: int, *, deflate: bool) -> list[str]:
        if deflate:
            raise ValueError(f"{self.name} has no compression")
        return [str(self._program()), str(port)]

    def _program(self) -> Path:
        return compiler.compile_program(self.key, tuple(self.app.split()))
