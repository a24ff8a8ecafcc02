"""Stub, replaced on merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ..url import BrokerURL

__all__ = ["AUTH_OPTIONS", "CredentialProvider", "Credentials", "load_provider"]

AUTH_OPTIONS = {"auth": "url", "connection_max_age_seconds": "age"}


class Credentials(NamedTuple):
    username: str | None
    password: str | None


class CredentialProvider(Protocol):
    max_age_seconds: float | None

    async def credentials(self) -> Credentials: ...


class _FromURL:
    def __init__(self, url: BrokerURL, extra: Mapping[str, str]) -> None:
        age = extra.get("connection_max_age_seconds")
        self.max_age_seconds = float(age) if age else None
        self._url = url

    async def credentials(self) -> Credentials:
        if self._url.username or self._url.password:
            return Credentials(self._url.username, self._url.password)
        options = self._url.driver_options
        return Credentials(options.get("username"), options.get("password"))  # type: ignore[arg-type]


def load_provider(url: BrokerURL, extra: Mapping[str, str]) -> CredentialProvider:
    return _FromURL(url, extra)


def rotation_delay_seconds(max_age_seconds: float, random: float) -> float:
    return max_age_seconds * (0.75 + 0.15 * random)
