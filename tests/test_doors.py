"""Forbidden imports between the rooms are found: each check fails on a planted violation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = "Layers: a module imports only what stands below it"
BACKENDS = "Backends: opened by URL, never imported by other rooms"
DJANGO = "Django: only optional_django and the rooms made for Django import it"
CONTRACTS = (LAYERS, BACKENDS, DJANGO)


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    # A bare environment, because others can ask for colours or for lines too short for the names.
    environment = {"COLUMNS": "200"}
    return subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("django_sockets", "backends"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    return tmp_path


def test_the_tree_keeps_every_contract(tree: Path) -> None:
    result = lint_imports(tree)
    assert result.returncode == 0, result.stdout + result.stderr
    assert [contract for contract in CONTRACTS if f"{contract} KEPT" not in result.stdout] == []


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("django_sockets/hub/hub.py", "from ..backends import memory", BACKENDS),
        (
            "django_sockets/hub/hub.py",
            "def late():\n    import django_sockets.backends.redis",
            BACKENDS,
        ),
        ("django_sockets/registry.py", "from .backends import memory", BACKENDS),
        ("django_sockets/testing/override.py", "from ..backends import memory", BACKENDS),
        ("django_sockets/hub/hub.py", "from django.conf import settings", DJANGO),
        ("django_sockets/sockets.py", "from django.http import HttpRequest", DJANGO),
        ("django_sockets/conf.py", "def late():\n    from django.conf import settings", DJANGO),
        ("django_sockets/runtime/hooks.py", "from rest_framework import views", DJANGO),
        ("backends/memory.py", "def late():\n    from django.conf import settings", DJANGO),
        ("backends/memory.py", "from ..hub import Hub", LAYERS),
        ("backends/memory.py", "from django_sockets import open_hub", LAYERS),
        ("backends/memory.py", "from ..registry import open_broker", LAYERS),
        ("backends/memory.py", "from ..conf import load_config", LAYERS),
        ("backends/memory.py", "from ..codec import encode", LAYERS),
        ("django_sockets/closing.py", "from .middleware import secure", LAYERS),
        ("django_sockets/closing.py", "from .integration import URLRouter", LAYERS),
        ("django_sockets/closing.py", "from .testing import override_broker", LAYERS),
        ("django_sockets/closing.py", "from .utils import run_in_thread", LAYERS),
        ("django_sockets/sockets.py", "from .closing import close_sockets", LAYERS),
        ("django_sockets/sockets.py", "from .broadcaster import Broadcaster", LAYERS),
        ("django_sockets/broadcaster.py", "from .sockets import BaseSocketServer", LAYERS),
        ("django_sockets/typed.py", "from .connection.outbox import Outbox", LAYERS),
        ("django_sockets/connection/outbox.py", "from ..sockets import BaseSocketServer", LAYERS),
        ("django_sockets/connection/outbox.py", "from ..broadcaster import Broadcaster", LAYERS),
        ("django_sockets/runtime/hooks.py", "from ..connection.outbox import Outbox", LAYERS),
        ("django_sockets/hub/control.py", "from ..runtime.hooks import call_hook", LAYERS),
        ("django_sockets/delivery/hold.py", "from ..hub.hub import Hub", LAYERS),
        ("django_sockets/codec.py", "from .delivery.events import Gap", LAYERS),
        ("django_sockets/conf.py", "from .codec import encode", LAYERS),
        ("django_sockets/optional_django.py", "from .conf import load_config", LAYERS),
        ("django_sockets/overrides.py", "from .conf import Config", LAYERS),
        ("django_sockets/registry.py", "from .conf import load_config", LAYERS),
        ("django_sockets/broker/broker.py", "from ..registry import open_broker", LAYERS),
        ("django_sockets/url.py", "from .broker import Broker", LAYERS),
        ("django_sockets/redaction.py", "from .url import BrokerURL", LAYERS),
        ("django_sockets/errors.py", "from .url import BrokerURL", LAYERS),
        ("django_sockets/errors.py", "from .redaction import mask", LAYERS),
        ("django_sockets/log.py", "from .errors import Reject", LAYERS),
        ("django_sockets/newcomer.py", "", LAYERS),
    ],
)
def test_a_planted_import_is_found(tree: Path, module: str, planted: str, contract: str) -> None:
    with (tree / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{planted}\n")
    result = lint_imports(tree)
    assert result.returncode != 0
    assert [name for name in CONTRACTS if f"{name} BROKEN" in result.stdout] == [contract]
