"""The installed package contains exactly the modules of the tree, and works alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"django_sockets": "django_sockets", "backends": "django_sockets/backends"}

pytestmark = pytest.mark.timeout(300)


def run(
    *command: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def pip(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


def files_of_the_tree() -> set[str]:
    """Every file that belongs in the wheel, by its path there; `os.walk` passes the symlink by."""
    return {
        f"{target}/{(Path(folder) / name).relative_to(ROOT / source).as_posix()}"
        for source, target in PACKAGES.items()
        for folder, _, names in os.walk(ROOT / source)
        for name in names
        if "__pycache__" not in folder
    }


def plain_python_example() -> str:
    """The first code block of README's "Without Django" with a socket class."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = readme[readme.index("## Without Django") :]
    for block in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        if "BaseSocketServer" in block:
            return block
    pytest.fail("README.md has no plain Python example with BaseSocketServer")


def test_the_wheel_holds_every_file_of_the_package_once_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(files_of_the_tree())
    assert "django_sockets/py.typed" in names
    assert "django_sockets/backends/memory.py" in names


def test_the_source_distribution_has_the_pages_that_hints_name(wheel: Path, tmp_path: Path) -> None:
    """The hint of a system check says "docs/checks.md": a wheel has no pages."""
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    built = run(sys.executable, "-c", build, tmp_path, cwd=wheel.parent / "tree")
    assert built.returncode == 0, built.stderr
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", *pages} <= names
    assert {"backends/memory.py", "django_sockets/sockets.py"} & names


def test_the_wheel_alone_runs_the_example_of_the_readme(
    wheel: Path, tmp_path: Path, missing: Callable[[str], NoReturn]
) -> None:
    script = tmp_path / "example.py"
    script.write_text(plain_python_example(), encoding="utf-8")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv/bin/python"
    alone = pip("--python", python, "install", "--no-deps", wheel, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    with_dependencies = pip("--python", python, "install", wheel, cwd=tmp_path)
    if with_dependencies.returncode:
        missing(f"cannot install the dependencies: {with_dependencies.stderr}")

    # Neither the environment nor the working directory leads back to this checkout.
    example = run(python, "-I", script, cwd=tmp_path, env={})
    assert example.returncode == 0, example.stderr
    assert example.stdout.strip(), "the example printed nothing, so it showed nothing"
    assert "Traceback" not in example.stderr, example.stderr

    # The declared dependencies are enough for the main backend, too.
    opened = "from django_sockets import open_broker; print(open_broker('redis://localhost').url)"
    backend = run(python, "-I", "-c", opened, cwd=tmp_path, env={})
    assert backend.stdout.strip() == "redis://localhost", backend.stderr
