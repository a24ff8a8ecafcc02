"""Node and the development dependencies of `client/`, installed once with its lock file."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

__all__ = ["CLIENT", "Run", "prepare", "run"]

CLIENT = Path(__file__).resolve().parents[2] / "client"
OLDEST_NODE = 20

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*command: str | Path, cwd: Path = CLIENT) -> subprocess.CompletedProcess[str]:
    """Run a command in `client/`."""
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240
    )


def prepare(missing: Callable[[str], NoReturn], lock: Path) -> None:
    """Install the packages of the lock file, unless they are there.

    Args:
        missing: called if something is not installed.
        lock: a file that processes lock which come here at the same time.
    """
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            missing(f"{name} is not installed: install the package nodejs")
    version = run("node", "--version").stdout
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        missing(f"node {version} is installed; the tests need {OLDEST_NODE} or later")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        present = CLIENT / "node_modules" / ".package-lock.json"
        wanted = CLIENT / "package-lock.json"
        if not present.exists() or present.stat().st_mtime < wanted.stat().st_mtime:
            installed = run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
            if installed.returncode:
                missing(f"npm ci failed: {installed.stderr}")
            present.touch()
