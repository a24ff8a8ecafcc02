"""The directives of a cache server at its start, and its certificates for TLS.

Used by `servers`, `clusters`, `sentinels` and `serverless`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from .ports import HOST

__all__ = ["CA_FILE", "SOCKET_FILE", "arguments", "certificates", "cluster_directives"]

CA_FILE, CERTIFICATE_FILE, KEY_FILE = "ca.pem", "server.pem", "server.key"
SOCKET_FILE = "server.sock"


def arguments(
    *,
    host: str,
    port: int,
    tls: bool,
    unix: bool,
    username: str | None,
    password: str | None,
    config: Mapping[str, str],
    without: Iterable[str] = (),
) -> list[str]:
    """The directives as command line arguments. File names are relative to the server's directory.

    Args:
        config: further directives, which take precedence; values as in a configuration file.
        without: commands that the server does not have.
    """
    directives = {"bind": host, "save": "", "appendonly": "no"}
    if host != HOST:
        directives["protected-mode"] = "no"  # With "yes", only loopback clients may connect.
    if tls:
        directives |= {"port": "0", "tls-port": str(port), "tls-auth-clients": "no"}
        directives |= {"tls-cert-file": CERTIFICATE_FILE, "tls-key-file": KEY_FILE}
    else:
        directives["port"] = str(port)
    if unix:
        directives["unixsocket"] = SOCKET_FILE
    words: list[str] = []
    for name, value in {**directives, **config}.items():
        words += [f"--{name}", *(shlex.split(value) or [""])]
    for command in without:
        words += ["--rename-command", command, ""]
    if username:
        words += ["--user", username, "on", f">{password}", "~*", "&*", "+@all"]
        words += ["--user", "default", "off"]
    elif password:
        words += ["--requirepass", password]
    return words


def cluster_directives(
    *,
    tls: bool,
    username: str | None,
    password: str | None,
    node_timeout_ms: int,
    full_coverage: bool,
) -> dict[str, str]:
    """The directives of every node of a cluster; see `CacheCluster`."""
    directives = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": str(node_timeout_ms),
        "cluster-replica-validity-factor": "0",
        "cluster-allow-replica-migration": "no",
        "cluster-require-full-coverage": "yes" if full_coverage else "no",
        "repl-diskless-sync-delay": "0",
        "repl-ping-replica-period": "1",
        "repl-timeout": "5",
        "shutdown-timeout": "0",
    }
    if tls:
        directives |= {"tls-cluster": "yes", "tls-replication": "yes"}
        directives |= {"tls-ca-cert-file": CA_FILE}
    if password:
        directives |= {"masterauth": shlex.quote(password)}
    if username:
        directives |= {"masteruser": shlex.quote(username)}
    return directives


def certificates() -> dict[str, bytes]:
    """File name -> contents of an authority and its certificate for localhost and 127.0.0.1.

    Raises:
        ImportError: trustme is not installed.
    """
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", HOST)
    return {
        CA_FILE: authority.cert_pem.bytes(),
        CERTIFICATE_FILE: b"".join(pem.bytes() for pem in certificate.cert_chain_pems),
        KEY_FILE: certificate.private_key_pem.bytes(),
    }
