"""Each peer in an environment of its own, made on first use and kept in `benchmarks/.cache`."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

CACHE = Path(__file__).resolve().parent / ".cache"
SERVER = ("uvicorn", "uvloop", "websockets", "hiredis")


@dataclasses.dataclass(frozen=True)
class Peer:
    """Somebody to compare with.

    Attributes:
        module: of `benchmarks/peers`; also the name of its function in `wire`.
        packages: what its environment holds; empty for our own environment.
    """

    name: str
    module: str
    packages: tuple[str, ...] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        if not self.packages:
            return Path(sys.executable)
        return CACHE / self.module / "bin" / "python"

    def install(self) -> None:
        """Make its environment, if it is not there."""
        done = CACHE / self.module / "installed"
        if not self.packages or done.exists():
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", done.parent], check=True)
        pip = [self.python, "-m", "pip", "install", "--quiet", *self.packages, *SERVER]
        subprocess.run(pip, check=True)
        done.touch()


LIMIT = Peer("limit", "limit")
OURS = Peer("django_sockets", "ours")
PUBLISHED = Peer("django-sockets 3.1.0", "published", ("django-sockets==3.1.0",))
CHANNELS = Peer("channels pubsub", "channels_pubsub", ("channels", "channels_redis"))
PEERS = (LIMIT, OURS, PUBLISHED, CHANNELS)
