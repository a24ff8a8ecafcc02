"""TLS options under other drivers' names, and key files that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from django_sockets import ConfigurationError, open_broker
from django_sockets.backends.client.connector import Connector
from django_sockets.conf import load_config
from django_sockets.errors import ConnectError
from django_sockets.url import Address, BrokerURL

trustme = pytest.importorskip("trustme")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")

PASSWORD = "hunter2-s3cret"

HINTS = {
    "rediss://h?ssl_cert_reqs=none": "write tls_verify=none",
    "rediss://h?ssl_cert_reqs=CERT_NONE": "write tls_verify=none",
    "rediss://h?ssl_check_hostname=false": "tls_verify=ca",
    "rediss://h?ssl_ca_certs=/x": "write tls_ca_file",
    "rediss://h?ssl_certfile=/x": "write tls_cert_file",
    "rediss://h?ssl_keyfile=/x": "write tls_key_file",
    "rediss+cluster://h?ssl_cert_reqs=none": "write tls_verify=none",
    "rediss+sentinel://h/main?ssl_cert_reqs=none": "write tls_verify=none",
    "redis+serverless://h?ssl_cert_reqs=none": "the certificate is always verified",
    "redis+serverless://h?tls_verify=none": "the certificate is always verified",
    "redis://h?ssl_cert_reqs=none": "TLS needs the scheme rediss://; there, write tls_verify=none",
    "redis://h?tls_verify=none": "TLS needs the scheme rediss://",
    "redis+cluster://h?tls_ca_file=/x": "TLS needs the scheme rediss+cluster://",
    "redis+sentinel://h/m?ssl_ca_certs=/x": "rediss+sentinel://; there, write tls_ca_file",
    "redis+unix:///tmp/x?ssl_cert_reqs=none": "a unix socket has no TLS",
    "redis://h?socket_connect_timeout=5": "write connect_timeout_seconds",
    "redis://h?socket_timeout=5": "write publish_timeout_seconds",
    "redis://h?db=1": "write the number behind the host: /0",
    "redis://h?password=hunter2-s3cret": "user:password@",
}


@pytest.mark.parametrize("text", HINTS)
def test_the_name_of_another_driver_leads_to_ours(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_broker(text)
    assert HINTS[text] in str(caught.value)
    assert PASSWORD not in str(caught.value)


def files(directory: Path, password: bytes | None, form: Any) -> dict[str, str]:
    """A certificate and its key, encrypted if there is a password."""
    pem = trustme.CA().issue_cert("me@example.org")
    key = serialization.load_pem_private_key(pem.private_key_pem.bytes(), None)
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    names = {"tls_cert_file": directory / "cert.pem", "tls_key_file": directory / "key.pem"}
    names["tls_cert_file"].write_bytes(pem.cert_chain_pems[0].bytes())
    names["tls_key_file"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, encryption)
    )
    return {name: str(path) for name, path in names.items()}


FORMS = [
    serialization.PrivateFormat.PKCS8,
    serialization.PrivateFormat.TraditionalOpenSSL,
]
SCHEMES = ["rediss://h", "rediss+sentinel://h/main", "rediss+cluster://h", "redis+serverless://h"]


def query(options: dict[str, str]) -> str:
    return "&".join(f"{name}={value}" for name, value in options.items())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_encrypted_key_without_a_password(tmp_path: Path, scheme: str, form: Any) -> None:
    text = f"{scheme}?{query(files(tmp_path, PASSWORD.encode(), form))}"
    with pytest.raises(ConfigurationError, match="the TLS key is encrypted: decrypt its file"):
        open_broker(text)


def test_no_password_is_asked_for_on_the_terminal(tmp_path: Path) -> None:
    """OpenSSL asks on the controlling terminal, and blocks the process until there is an answer."""
    text = f"rediss://h?{query(files(tmp_path, PASSWORD.encode(), FORMS[0]))}"
    code = f"from django_sockets import open_broker\nopen_broker({text!r})"
    primary, terminal = os.openpty()
    try:
        process = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": ":".join(sys.path), "PATH": os.environ["PATH"]},
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=30,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(primary)
    assert b"the TLS key is encrypted" in process.stdout
    assert b"PEM pass phrase" not in process.stdout


@pytest.mark.parametrize("form", FORMS)
def test_an_encrypted_key_with_its_password(tmp_path: Path, form: Any) -> None:
    text = f"rediss://h?{query(files(tmp_path, PASSWORD.encode(), form))}"
    Connector(load_config([{"address": text, "ssl_password": PASSWORD}]).url)
    with pytest.raises(ConfigurationError, match="the files of the TLS options cannot be used"):
        Connector(load_config([{"address": text, "ssl_password": "another"}]).url)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (files(tmp_path / name, None, FORMS[0]) for name in "ab")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    for options in (
        {**one, "tls_key_file": other["tls_key_file"]},
        {"tls_key_file": one["tls_key_file"]},
        {**one, "tls_cert_file": str(nothing)},
        {**one, "tls_key_file": str(nothing)},
        {"tls_ca_file": str(nothing)},
    ):
        with pytest.raises(ConfigurationError, match="the files of the TLS options cannot be used"):
            open_broker(f"rediss://h?{query(options)}")


async def test_a_renewed_key_that_is_encrypted_is_an_error_of_the_connection(
    tmp_path: Path,
) -> None:
    """It must not end the task that connects, which tries again until the file is right."""
    options = files(tmp_path, None, FORMS[0])
    connector = Connector(BrokerURL.parse(f"rediss://127.0.0.1:1?{query(options)}"))
    files(tmp_path, PASSWORD.encode(), FORMS[0])
    later = time.time_ns() + 10**9
    os.utime(options["tls_key_file"], ns=(later, later))
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:1: the TLS key is encrypted"):
        await connector.open(Address("127.0.0.1", 1))
