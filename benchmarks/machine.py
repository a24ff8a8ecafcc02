"""Describes the machine that the figures belong to."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

from django_sockets.testing.servers import ValkeyServer


def describe() -> dict[str, str]:
    """The machine, its system, the broker and the time."""
    memory = re.search(r"MemTotal: +(\d+)", _read("/proc/meminfo"))
    processor = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    version = subprocess.check_output([ValkeyServer.find_binary(), "--version"], text=True)
    found = re.search(r"v=(\S+)", version)
    return {
        "processor": processor.group(1) if processor else platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory.group(1)) / 1024**2:.1f} GiB" if memory else "",
        "system": platform.platform(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "valkey": found.group(1) if found else version.strip(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.exists() else ""
