"""The peers, each with a Python environment of its own.

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

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "benchmarks" / ".cache"
APPS = ROOT / "benchmarks" / "peers"
SERVER = ("uvicorn", "uvloop", "websockets", "hiredis")
UVICORN = (
    "--ws websockets-sansio --loop uvloop --ws-per-message-deflate false --ws-ping-interval 0 "
    "--backlog 4096 --lifespan off --log-level error"
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
        key: its name on the command line, and of its function in `wire`.
        app: its module in `benchmarks/peers`; "" if it is only measured inside a process.
        environment: the name of its environment; "" for the current one.
        packages: the packages of the environment besides the server.
        share: its share of the messages that the other peers get; below 1 for a slow peer.
        most_joining: the most sockets of a connect storm; more would take a minute.
        greets: whether it sends a frame after it has subscribed.
    """

    name: str
    key: str
    app: str = ""
    environment: str = ""
    packages: tuple[str, ...] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    share: float = 1.0
    most_joining: int = 10_000
    greets: bool = True

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

    def command(self, port: int) -> list[str]:
        """The command that serves it on a port."""
        where = ["--app-dir", str(APPS), "--port", str(port)]
        return [str(self.python), "-m", "uvicorn", f"{self.app}:app", *where, *UVICORN]

    def environ(self) -> dict[str, str]:
        """The environment variables of its server's process."""
        return {**os.environ, **self.variables}


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

    def command(self, port: int) -> list[str]:
        return ["node", str(APPS / self.app), str(port)]

    def environ(self) -> dict[str, str]:
        return {**super().environ(), "NODE_ENV": "production", "NODE_PATH": str(self._modules)}

    @property
    def _modules(self) -> Path:
        return self._home / "node_modules"


def _channels(name: str, key: str, layer: str, share: float) -> Peer:
    packages = ("channels", "channels_redis")
    variables = {"BENCH_LAYER": f"channels_redis.{layer}"}
    return Peer(name, key, "channels_group", "channels", packages, variables, share)


LIMIT = Peer("limit", "limit", "limit")
OURS = Peer("django_sockets", "ours", "ours")
PUBLISHED = Peer(
    "django-sockets 3.1.0",
    "published",
    "published",
    "published",
    ("django-sockets==3.1.0",),
    share=0.4,
    most_joining=500,  # Each of its sockets polls 20 times a second.
)
PUBSUB = _channels(
    "channels, pubsub layer", "channels_pubsub", "pubsub.RedisPubSubChannelLayer", share=0.1
)
CORE = _channels("channels, core layer", "channels_core", "core.RedisChannelLayer", share=0.04)
OUR_LAYER = Peer(
    "channels, our layer",
    "channels_ours",
    "channels_group",
    variables={"BENCH_LAYER": "django_sockets.integration.channel_layer.ChannelLayer"},
    share=0.1,
)
NODE = NodePeer("node ws + ioredis", "node", "node.cjs", "node", ("ws", "ioredis"))
BARE = Peer("bare server", "bare", "bare", greets=False)
REDIS_PY = Peer("redis-py", "redis_py")

PEERS = (LIMIT, OURS, PUBLISHED, PUBSUB, CORE, OUR_LAYER, NODE, BARE, REDIS_PY)
