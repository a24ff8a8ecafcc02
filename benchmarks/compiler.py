"""Compiles the C programs in `benchmarks/c`."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "c"
OUTPUT = Path(__file__).resolve().parent / ".cache" / "c"
FLAGS = "-std=gnu11 -O2 -Wall -Wextra -Wshadow -Wconversion".split()


def missing() -> str:
    """The reason why nothing can be compiled; "" if it can."""
    return "" if shutil.which("cc") else "no C compiler: no cc on PATH"


def version() -> str:
    """The first line of `cc --version`."""
    return subprocess.check_output(["cc", "--version"], text=True).splitlines()[0]


@functools.cache
def compile_program(name: str, sources: tuple[str, ...]) -> Path:
    """Compile and link a program."""
    return _compile(OUTPUT / name, sources, ())


@functools.cache
def compile_library(name: str) -> Path:
    """Compile one source to a shared library, for ctypes."""
    return _compile(OUTPUT / f"{name}.so", (f"{name}.c",), ("-shared", "-fPIC"))


def _compile(output: Path, sources: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    files = [str(SOURCES / source) for source in sources]
    subprocess.run(["cc", *FLAGS, *flags, "-o", str(output), *files], check=True)
    return output
