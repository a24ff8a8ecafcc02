"""The browser client: its own tests in Node, its types, and the files that are shipped."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "client"
STATIC = ROOT / "django_sockets" / "static" / "django_sockets"
MOST_BYTES = 12 * 1024

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", sorted(path.name for path in CLIENT.glob("tests/*.test.js")))
def test_the_tests_of_the_client_pass(node: Any, name: str) -> None:
    ended = node("node", "--test", "--test-reporter=tap", f"tests/{name}")
    assert ended.returncode == 0, ended.stdout[-20_000:]
    passed = re.search(r"^# pass (\d+)$", ended.stdout, re.MULTILINE)
    assert passed
    assert int(passed[1]) > 0
    assert "# skipped 0" in ended.stdout


def test_the_types_are_right(node: Any) -> None:
    ended = node("npx", "--no-install", "tsc", "--project", ".")
    assert ended.returncode == 0, ended.stdout


def test_the_shipped_files_are_a_fresh_build(node: Any) -> None:
    ended = node("node", "scripts/build.js", "--check")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_changed_file_is_not_a_fresh_build(node: Any, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("node_modules", "dist")
    shutil.copytree(CLIENT, tmp_path / "client", ignore=ignored)
    (tmp_path / "client" / "node_modules").symlink_to(CLIENT / "node_modules")
    shutil.copytree(STATIC, tmp_path / "django_sockets/static/django_sockets")
    source = tmp_path / "client/src/limits.js"
    source.write_text(source.read_text().replace("WAIT_MS = 5000", "WAIT_MS = 6000"))
    ended = node("node", "scripts/build.js", "--check", cwd=tmp_path / "client")
    assert ended.returncode == 1
    assert "client.js is not the build of client/src" in ended.stderr


def test_the_browser_loads_one_small_file_without_comments() -> None:
    text = (STATIC / "client.js").read_text(encoding="utf-8")
    assert len(text.encode()) <= MOST_BYTES
    assert not re.search(r"/\*|//(?!example)|sourceMappingURL", text)
    assert not re.search(r"\bimport\b|\brequire\(", text)
    for name in ("client", "events", "react"):
        assert (STATIC / f"{name}.js").exists()
        assert (STATIC / f"{name}.d.ts").exists()
        assert "sourceMappingURL" not in (STATIC / f"{name}.js").read_text(encoding="utf-8")


def test_the_close_codes_of_the_client_are_those_of_the_server() -> None:
    path = CLIENT / "scripts" / "close_codes.py"
    spec = importlib.util.spec_from_file_location("client_close_codes", path)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text(encoding="utf-8") == script.rendered()


def test_the_npm_package_works_alone(node: Any, tmp_path: Path) -> None:
    packed = node("npm", "pack", "--json", "--pack-destination", tmp_path)
    assert packed.returncode == 0, packed.stderr
    listed = json.loads(packed.stdout[packed.stdout.index("[\n") :])[0]
    names = {file["path"] for file in listed["files"]}
    endings = ("js", "d.ts")
    built = {f"dist/{name}.{end}" for name in ("client", "events", "react") for end in endings}
    assert names == built | {"package.json", "README.md"}
    folder = tmp_path / "node_modules" / "django-sockets"
    shutil.unpack_archive(tmp_path / listed["filename"], tmp_path, format="gztar")
    folder.parent.mkdir()
    (tmp_path / "package").rename(folder)
    script = tmp_path / "use.mjs"
    script.write_text(
        'import { connect, RequestError } from "django-sockets";\n'
        'import { events } from "django-sockets/events";\n'
        "console.log(typeof connect, typeof events, new RequestError({code: 'a'}).code);\n"
    )
    ended = node("node", script)
    assert ended.stdout == "function function a\n", ended.stderr
    for name in ("client.js", "client.d.ts"):
        assert (folder / "dist" / name).read_bytes() == (STATIC / name).read_bytes()


def test_the_npm_package_has_the_version_of_the_python_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(\d+\.\d+\.\d+)(?:\.dev(\d+))?"', project, re.MULTILINE)
    assert found
    expected = found[1] + (f"-dev.{found[2]}" if found[2] else "")
    package = json.loads((CLIENT / "package.json").read_text())
    locked = json.loads((CLIENT / "package-lock.json").read_text())
    assert package["version"] == locked["version"] == expected


def test_the_lock_file_names_no_registry() -> None:
    text = (CLIENT / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert "://" not in re.sub(r'"url": "[^"]*"', "", text)
    for name, package in json.loads(text)["packages"].items():
        assert not name or package["integrity"].startswith("sha512-"), name


def test_the_client_has_no_dependency_at_run_time() -> None:
    package = json.loads((CLIENT / "package.json").read_text())
    assert "dependencies" not in package
    assert package["peerDependenciesMeta"] == {"react": {"optional": True}}
