"""A process loads only the parts of the library that it uses: each one delays its start."""

from __future__ import annotations

import subprocess
import sys

HEALING, PRESENCE = "django_sockets.hub.history.healing", "django_sockets.hub.presence"
PARTS = [
    HEALING,
    PRESENCE,
    "django_sockets.hub.traced",
    "django_sockets.observability",
    "django_sockets.backends.redis",
    "django",
    "importlib.metadata",
]
PARTS_OF_BROKERS = [
    "django_sockets.broker.inspection",
    "django_sockets.broker.presence",
    "django_sockets.presence",
]
PROGRAM = """
import asyncio, sys
before = set(sys.modules)
{imports}
def loaded():
    return [name for name in {parts} if name in sys.modules and name not in before]
print(loaded())
{rest}
"""
USE = """
async def main():
    async with open_hub("memory://lazy") as hub, hub.subscribe("room") as events:
        await hub.publish("room", b"1")
        assert (await anext(events)).payload == b"1"
    print(loaded())
    async with open_hub("memory://kept?history_messages=5&history_seconds=60") as hub:
        print(loaded())
        await hub.track("room", "ann")
        print(loaded())
asyncio.run(main())
"""


def output_of(imports: str, rest: str = "", parts: list[str] = PARTS) -> list[str]:
    program = PROGRAM.format(imports=imports, parts=parts, rest=rest)
    return subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()


def test_the_import_loads_nothing_that_not_every_process_needs() -> None:
    imports = "import django_sockets.sockets, django_sockets.broadcaster"
    assert output_of(imports, parts=PARTS + PARTS_OF_BROKERS) == ["[]"]


def test_a_hub_loads_its_parts_when_it_needs_them() -> None:
    assert output_of("from django_sockets import open_hub", USE) == [
        "[]",
        "[]",
        str([HEALING]),
        str([HEALING, PRESENCE]),
    ]
