"""Node and the development dependencies of `client/`, installed once with its lock file."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

CLIENT = Path(__file__).resolve().parents[2] / "client"

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*command: str | Path, cwd: Path = CLIENT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture(scope="session")
def node(missing: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command in `client/`."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            missing(f"{name} is not installed: install the package nodejs")
    major = int(run("node", "--version").stdout.removeprefix("v").partition(".")[0])
    if major < 20:
        missing(f"node {major} is installed; the tests need 20 or later")
    # Several processes of pytest-xdist may come here at the same time.
    lock = tmp_path_factory.getbasetemp().parent / "npm.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        present = CLIENT / "node_modules" / ".package-lock.json"
        wanted = CLIENT / "package-lock.json"
        if not present.exists() or present.stat().st_mtime < wanted.stat().st_mtime:
            installed = run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
            if installed.returncode:
                missing(f"npm ci failed: {installed.stderr}")
    return run
