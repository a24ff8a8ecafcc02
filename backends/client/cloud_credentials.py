"""Credentials from a cloud's SDK: AWS IAM, Microsoft Entra ID and Google Cloud.

The SDKs are optional and are imported when a URL needs them. Their calls block and therefore run in
a thread. Only `credentials` loads this module.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import importlib
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from ...errors import AuthError, BrokerError, ConfigurationError, ConnectError, pip_command
from ...redaction import mask, without_frames
from ...url import BrokerURL
from .credentials import Credentials, refuse_password, required

__all__ = ["EntraCredentials", "GoogleCredentials", "IamCredentials"]


class _CloudCredentials(abc.ABC):
    """The common part of the three providers: the SDK's modules, the thread and the errors."""

    auth: str
    pip_extra: str
    modules: tuple[str, ...]
    uses: frozenset[str] = frozenset()
    advice: str
    unreachable: tuple[str, ...]
    """Names of the SDK's exceptions for temporary failures; others mean wrong credentials."""
    max_age_seconds: float | None = None

    def __init__(self, url: BrokerURL, extra: Mapping[str, str]) -> None:
        self._url = url
        refuse_password(url, self.auth)
        if url.scheme in ("redis", "redis+sentinel", "redis+cluster"):
            raise ConfigurationError(
                f"{url}: auth={self.auth} works over TLS only: write "
                f"{url.scheme.replace('redis', 'rediss', 1)}://"
            )
        try:
            self._sdk = [importlib.import_module(name) for name in self.modules]
        except ImportError as exc:
            raise ConfigurationError(
                f"{url}: auth={self.auth} needs the package {exc.name!r}: "
                f"run {pip_command(self.pip_extra)}"
            ) from exc

    async def credentials(self) -> Credentials:
        error: BrokerError
        try:
            return await asyncio.to_thread(self._ask)
        except BrokerError as exc:
            error = without_frames(exc)
        except Exception as exc:  # Each SDK has its own exceptions.
            names = {cls.__name__ for cls in type(exc).__mro__}
            kind = ConnectError if names & set(self.unreachable) else AuthError
            detail = _without_secrets((str(exc).strip().splitlines() or [""])[0])[:200]
            problem = f"auth={self.auth}: no token: {type(exc).__name__}: {detail}"
            error = kind(self._url, f"{problem.rstrip(': .')}; {self.advice}")
        raise error

    @abc.abstractmethod
    def _ask(self) -> Credentials:
        """Get credentials; blocks."""


def _without_secrets(text: str) -> str:
    """The text of an SDK without tokens and without the secrets in environment variables."""
    secret = ("SECRET", "TOKEN", "PASSWORD")
    values = [value for name, value in os.environ.items() if any(s in name for s in secret)]
    return re.sub(r"\beyJ[\w.-]+", "***", mask(text, *values))


class IamCredentials(_CloudCredentials):
    """`auth=iam`: an IAM token for ElastiCache or MemoryDB.

    The token is a presigned request to connect, without its "http://". It is valid for 15 minutes
    and for one cache and user; a connection may last 12 hours. Signing needs no network; finding
    the AWS credentials may. Source: AWS, "Authenticating with IAM" in the guides of both services.
    """

    auth = "iam"
    pip_extra = "aws"
    modules = ("botocore.session", "botocore.auth", "botocore.awsrequest", "botocore.credentials")
    uses = frozenset({"cache", "region", "serverless", "service", "user"})
    advice = (
        "give this process AWS credentials (a role of its machine or task, AWS_PROFILE, or "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    )
    unreachable = ("HTTPClientError", "MetadataRetrievalError")
    max_age_seconds = 12 * 3600.0
    TOKEN_SECONDS = 900

    def __init__(self, url: BrokerURL, extra: Mapping[str, str]) -> None:
        super().__init__(url, extra)
        self._user = required(url, self.auth, "user", extra.get("user") or url.username)
        self._region = required(url, self.auth, "region", extra.get("region"))
        # The services store names in lower case, and the stored name has to be signed.
        self._cache = required(url, self.auth, "cache", extra.get("cache")).lower()
        for name, value in (("cache", self._cache), ("region", self._region)):
            if not re.fullmatch(r"[a-z0-9-]+", value):
                raise ConfigurationError(
                    f"{url}: option {name}: letters, digits and hyphens, "
                    "such as 'my-cache' or 'eu-west-1'; not an endpoint"
                )
        self._service = extra.get("service", "elasticache")
        if self._service not in ("elasticache", "memorydb"):
            raise ConfigurationError(f"{url}: option service: use 'elasticache' or 'memorydb'")
        serverless = extra.get("serverless", str(url.scheme == "redis+serverless").lower())
        if serverless not in ("true", "false"):
            raise ConfigurationError(f"{url}: option serverless: use 'true' or 'false'")
        if serverless == "true" and self._service == "memorydb":
            raise ConfigurationError(f"{url}: service=memorydb has no serverless caches")
        self._serverless = serverless == "true"
        self._found: Any = None

    def _ask(self) -> Credentials:
        session, auth, request, credentials = self._sdk
        # Credentials that refresh themselves are kept, with their cache. Others are looked up each
        # time, because the file that holds them may have been rotated.
        if not isinstance(self._found, credentials.RefreshableCredentials):
            self._found = session.Session().get_credentials()
        if self._found is None:
            raise AuthError(self._url, f"auth=iam: no AWS credentials found; {self.advice}")
        params = {"Action": "connect", "User": self._user}
        if self._serverless:
            params["ResourceType"] = "ServerlessCache"
        connect = request.AWSRequest("GET", f"http://{self._cache}/", params=params)
        auth.SigV4QueryAuth(
            self._found.get_frozen_credentials(),
            self._service,
            self._region,
            expires=self.TOKEN_SECONDS,
        ).add_auth(connect)
        return Credentials(self._user, connect.url.removeprefix("http://"))


class EntraCredentials(_CloudCredentials):
    """`auth=entra`: a Microsoft Entra token for Azure's Redis services.

    The server drops a connection whose token has expired, and the SDK may return a token from its
    cache. The age of a connection is therefore limited to the remaining life of the token, less the
    3 minutes that Microsoft recommends. Source: Microsoft, "Use Microsoft Entra ID for cache
    authentication".
    """

    auth = "entra"
    pip_extra = "azure"
    modules = ("azure.identity",)
    uses = frozenset({"user"})
    advice = (
        "give this process an Azure identity (managed identity, workload identity, or "
        "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET)"
    )
    unreachable = ("ServiceRequestError", "ServiceResponseError")
    SCOPE = "https://redis.azure.com/.default"
    MARGIN_SECONDS = 180.0
    max_age_seconds = (
        2700.0  # Applies until there is a token; by default a token lives at least an hour.
    )
    LEAST_SECONDS = 30.0

    def __init__(self, url: BrokerURL, extra: Mapping[str, str]) -> None:
        super().__init__(url, extra)
        self._user = extra.get("user") or url.username
        self._credential: Any = None

    def _ask(self) -> Credentials:
        if self._credential is None:
            self._credential = self._sdk[0].DefaultAzureCredential()
        token = self._credential.get_token(self.SCOPE)
        left = token.expires_on - time.time() - self.MARGIN_SECONDS
        self.max_age_seconds = max(left, self.LEAST_SECONDS)
        return Credentials(self._user or self._object_id(token.token), token.token)

    def _object_id(self, token: str) -> str:
        try:
            body = token.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            return str(claims["oid"])
        except (ValueError, LookupError, TypeError):
            raise AuthError(
                self._url,
                "auth=entra: the token names no object id: put that of your identity in the option "
                "'user'",
            ) from None


class GoogleCredentials(_CloudCredentials):
    """`auth=google`: an access token for Google Cloud Memorystore.

    A token lives an hour, but a connection outlives the token it was opened with. Connections are
    therefore never replaced because of their age. Source: Google Cloud, "About IAM authentication"
    and "About in-transit encryption" (Memorystore for Redis Cluster).
    """

    auth = "google"
    pip_extra = "gcp"
    modules = ("google.auth", "google.auth.transport.requests")
    advice = (
        "give this process Google credentials (a service account of its machine or workload, or "
        "GOOGLE_APPLICATION_CREDENTIALS)"
    )
    unreachable = ("TransportError",)
    SCOPE = "https://www.googleapis.com/auth/cloud-platform"

    def __init__(self, url: BrokerURL, extra: Mapping[str, str]) -> None:
        super().__init__(url, extra)
        self._user = url.username or "default"
        self._found: Any = None

    def _ask(self) -> Credentials:
        google, transport = self._sdk
        if self._found is None:
            self._found, _ = google.default(scopes=[self.SCOPE])
        if not self._found.valid:
            self._found.refresh(transport.Request())
        return Credentials(self._user, self._found.token)
