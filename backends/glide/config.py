"""The configuration of valkey-glide for a URL.

`client` makes the driver's clients with it. `publisher` exports the two classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError, pip_command
from ...url import Address, BrokerURL
from ..client.connector import DEFAULT_PORT, Connector

if TYPE_CHECKING:
    from glide import GlideClient, GlideClusterClient, ServerCredentials, TlsAdvancedConfiguration

__all__ = ["GlideConnection", "GlideIAM", "client_maker", "glide_connection"]


@dataclasses.dataclass(frozen=True)
class GlideIAM:
    """Credentials that the driver signs and renews: IAM of ElastiCache or MemoryDB.

    Attributes:
        cluster_name: the name of the cache in the AWS console.
        region: such as "eu-west-1".
        service: "elasticache" or "memorydb".
    """

    cluster_name: str
    region: str
    service: str = "elasticache"


@dataclasses.dataclass(frozen=True)
class GlideConnection:
    """The servers of a client and its connection settings. Equal settings share one client.

    Attributes:
        addresses: 1..n; on a cluster, the servers that are asked for all others.
        cluster: use the cluster protocol.
        tls: use TLS; the `tls_` attributes require it.
        tls_verify: "full" or "none"; the driver has no "ca".
        username, password: sent only with a password, or with `iam`.
        protocol: the RESP version, 2 or 3; None for the driver's default.
    """

    addresses: tuple[Address, ...]
    cluster: bool = False
    tls: bool = False
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_verify: str = "full"
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    iam: GlideIAM | None = None
    protocol: int | None = None


def glide_connection(connector: Connector, *, cluster: bool) -> GlideConnection:
    """The settings of a URL for the driver.

    Raises:
        ConfigurationError: the driver does not support a setting.
    """
    url, extra = connector.url, connector.extra
    auth = extra.get("auth", "url")
    username, password = url.username, url.password
    iam = None
    if auth == "iam":
        iam = GlideIAM(extra["cache"], extra["region"], extra.get("service", "elasticache"))
        username = extra.get("user", username)
    elif auth != "url":
        raise ConfigurationError(f"{url}: driver=glide supports only auth=url and auth=iam")
    elif not username and not password:
        given = url.driver_options
        username, password = (
            None if given.get(name) is None else str(given[name])
            for name in ("username", "password")
        )
    files = {name: extra.get(name) for name in ("tls_ca_file", "tls_cert_file", "tls_key_file")}
    return GlideConnection(
        addresses=url.addresses,
        cluster=cluster,
        tls=connector.tls,
        tls_verify=extra.get("tls_verify", "full"),
        username=username,
        password=password,
        iam=iam,
        protocol=connector.protocol,
        **files,
    )


def client_maker(
    url: BrokerURL, connection: GlideConnection
) -> Callable[[], Coroutine[Any, Any, GlideClient | GlideClusterClient]]:
    """A function that makes a client, which is not connected yet.

    Raises:
        ConfigurationError: the driver is missing or does not support a setting.
    """
    try:
        import glide
    except ModuleNotFoundError as exc:
        raise ConfigurationError(
            f"{url}: the package 'glide' is not installed: run {pip_command('glide')}"
        ) from exc
    # The driver logs to the terminal by default; we log what matters.
    glide.Logger.init(glide.LogLevel.OFF)
    milliseconds = max(1, int(url.options.connect_timeout_seconds * 1000))
    tls = _tls(url, connection)
    shared: dict[str, Any] = {
        "addresses": [
            glide.NodeAddress(address.host, address.port or DEFAULT_PORT)
            for address in connection.addresses
        ],
        "use_tls": connection.tls,
        "credentials": _credentials(connection),
        "request_timeout": milliseconds,
        "lib_name": "django_sockets",
        # Connecting in `create` blocks its event loop, for seconds if the server is down.
        "lazy_connect": True,
    }
    if connection.protocol is not None:
        shared["protocol"] = getattr(glide.ProtocolVersion, f"RESP{connection.protocol}")
    if connection.cluster:
        # One silent node makes the driver wait twice, as a seed and as part of the topology, before
        # it serves the others. Both waits have to fit into our timeout.
        milliseconds = max(1, milliseconds * 2 // 5)
        cluster_configuration = glide.GlideClusterClientConfiguration(
            **shared,
            # A message that cannot be sent while a node reconnects fails; it is not sent late.
            recovery_requests_queue_size=0,
            advanced_config=glide.AdvancedGlideClusterClientConfiguration(
                connection_timeout=milliseconds, tls_config=tls
            ),
        )
        return functools.partial(glide.GlideClusterClient.create, cluster_configuration)
    configuration = glide.GlideClientConfiguration(
        **shared,
        # Otherwise the driver sends INFO to learn the role, which may be forbidden.
        node_discovery_mode=glide.NodeDiscoveryMode.STATIC,
        advanced_config=glide.AdvancedGlideClientConfiguration(
            connection_timeout=milliseconds, tls_config=tls
        ),
    )
    return functools.partial(glide.GlideClient.create, configuration)


def _tls(url: BrokerURL, connection: GlideConnection) -> TlsAdvancedConfiguration | None:
    import glide

    if not connection.tls:
        return None
    if connection.tls_verify not in ("full", "none"):
        raise ConfigurationError(
            f"{url}: option tls_verify: driver=glide supports 'full' and 'none'"
        )
    files: dict[str, bytes] = {}
    for argument, option in (
        ("root_pem_cacerts", "tls_ca_file"),
        ("client_cert_pem", "tls_cert_file"),
        ("client_key_pem", "tls_key_file"),
    ):
        name = getattr(connection, option)
        if name is None:
            continue
        try:
            files[argument] = Path(name).read_bytes()
        except OSError as exc:
            raise ConfigurationError(f"{url}: option {option}: {exc.strerror}") from exc
    if ("client_cert_pem" in files) != ("client_key_pem" in files):
        raise ConfigurationError(f"{url}: driver=glide needs both tls_cert_file and tls_key_file")
    return glide.TlsAdvancedConfiguration(
        use_insecure_tls=True if connection.tls_verify == "none" else None,
        **files,
    )


def _credentials(connection: GlideConnection) -> ServerCredentials | None:
    import glide

    if connection.iam is not None:
        services = {
            "elasticache": glide.ServiceType.ELASTICACHE,
            "memorydb": glide.ServiceType.MEMORYDB,
        }
        service = services.get(connection.iam.service)
        if service is None or not connection.username:
            raise ConfigurationError(
                "IAM of driver=glide needs a user name, and the service 'elasticache' or 'memorydb'"
            )
        return glide.ServerCredentials(
            username=connection.username,
            iam_config=glide.IamAuthConfig(
                connection.iam.cluster_name, service, connection.iam.region
            ),
        )
    if connection.password is None:
        return None
    return glide.ServerCredentials(connection.password, connection.username)
