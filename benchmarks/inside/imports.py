"""Milliseconds to import, the median of several new interpreters.

All modules are compiled before the measurement, as after an installation.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

FIRST = {"ours": "import redis.asyncio", "redis_py": ""}
THEN = {"ours": "import django_sockets.sockets", "redis_py": "import redis.asyncio"}
PROGRAM = """
import time
{first}
started = time.perf_counter()
{then}
print((time.perf_counter() - started) * 1000)
"""
TIMES = 7


def import_ms(key: str) -> float:
    """The import time of "redis_py", or of "ours" after redis-py was imported."""
    program = PROGRAM.format(first=FIRST[key], then=THEN[key])
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def once() -> float:
            return float(subprocess.check_output([sys.executable, "-c", program], env=environment))

        once()
        return statistics.median(once() for _ in range(TIMES))


if __name__ == "__main__":
    print(json.dumps({"import_ms": import_ms(sys.argv[1])}))
