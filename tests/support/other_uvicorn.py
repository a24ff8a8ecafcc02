"""Other versions of uvicorn: each in a folder that goes in front of sys.path in a new process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["NotAvailable", "environment_with", "folder_with"]

CACHE = Path(sys.prefix) / "share" / "django_sockets-tests"
"""It lives as long as the environment of the tests, so that each version is downloaded once."""
ROOT = Path(__file__).resolve().parents[2]


class NotAvailable(Exception):
    """The package index cannot be reached, or does not have the version."""


def folder_with(*requirements: str) -> Path:
    """A folder with packages, such as "uvicorn==0.52.1", without their dependencies.

    Raises:
        NotAvailable: pip could not install them.
    """
    folder = CACHE / "+".join(requirements).replace("==", "-")
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Another process may do the same at this moment: the first one that has finished wins.
        new = Path(tempfile.mkdtemp(dir=CACHE))
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        ended = subprocess.run(
            [*command, "--quiet", "--no-deps", "--no-compile", "--target", new, *requirements],
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            shutil.rmtree(new)
            raise NotAvailable(f"pip cannot install {' '.join(requirements)}: {ended.stderr}")
        try:
            new.rename(folder)
        except OSError:
            shutil.rmtree(new)
    return folder


def environment_with(*requirements: str, path: str = "") -> dict[str, str]:
    """The environment of a process that imports these packages, and the library from here."""
    parts = [str(folder_with(*requirements)), path, str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, parts))}
