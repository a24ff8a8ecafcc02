"""Every connection logs in with the right credentials, and no secret is shown."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import logging
import random
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.auth
import pytest

from django_sockets.backends.client import cloud_credentials
from django_sockets.backends.client.credentials import (
    AUTH_OPTIONS,
    CredentialProvider,
    Credentials,
    auth_options,
    load_provider,
    rotation_delay_seconds,
)
from django_sockets.errors import AuthError, ConfigurationError, ConnectError
from django_sockets.url import BrokerURL

KEY_ID, SECRET, SESSION_TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG", "session+token/=="
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
IAM = "rediss://cache.example?auth=iam&region=eu-west-1&cache=My-Cache&user=app"


def provider_for(text: str, **driver_options: object) -> CredentialProvider:
    url = BrokerURL.parse(text, driver_options)
    return load_provider(url, url.check_extra(auth_options(url)))


# The URL


async def test_the_url_or_the_hosts_entry_names_the_user() -> None:
    assert await provider_for("redis://me:pw@h").credentials() == ("me", "pw")
    assert await provider_for("redis://h?auth=url").credentials() == (None, None)
    assert await provider_for("redis://h", username="you", password="x").credentials() == (
        "you",
        "x",
    )
    both = provider_for("redis://me:pw@h", username="you", password="x")
    assert await both.credentials() == ("me", "pw")
    assert both.max_age_seconds is None


# The environment and files


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("DJANGO_SOCKETS_USERNAME", "DJANGO_SOCKETS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


async def test_the_environment_is_read_at_each_connect(variables: pytest.MonkeyPatch) -> None:
    provider = provider_for("redis://me@h?auth=env")
    variables.setenv("DJANGO_SOCKETS_PASSWORD", "one")
    assert await provider.credentials() == ("me", "one")
    variables.setenv("DJANGO_SOCKETS_USERNAME", "app")
    variables.setenv("DJANGO_SOCKETS_PASSWORD", "two")
    assert await provider.credentials() == ("app", "two")


async def test_an_environment_without_a_password_is_an_error(
    variables: pytest.MonkeyPatch,
) -> None:
    variables.setenv("DJANGO_SOCKETS_USERNAME", "app")
    with pytest.raises(AuthError, match="set the variable DJANGO_SOCKETS_PASSWORD"):
        await provider_for("redis://h?auth=env").credentials()


async def test_a_mounted_secret_is_read_at_each_connect(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    provider = provider_for(f"redis://me@h?auth=file&auth_file={secret}")
    with pytest.raises(AuthError, match="No such file"):
        await provider.credentials()
    secret.write_text("one\n", encoding="utf-8")
    assert await provider.credentials() == ("me", "one")
    secret.write_text("app\ntwo", encoding="utf-8")
    assert await provider.credentials() == ("app", "two")
    for wrong in ("", "\n", "a\nb\nsecret-c"):
        secret.write_text(wrong, encoding="utf-8")
        with pytest.raises(AuthError, match="the password on one line") as caught:
            await provider.credentials()
        assert "secret-c" not in str(caught.value)


# AWS


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Known AWS keys, and a clock that stands still."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("RELATIVE_URI", "FULL_URI"):
        monkeypatch.delenv(f"AWS_CONTAINER_CREDENTIALS_{name}", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    set_clock(monkeypatch, NOW)
    return monkeypatch


def set_clock(monkeypatch: pytest.MonkeyPatch, now: datetime.datetime) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now)


def token_by_hand(
    cache: str,
    parameters: str,
    *,
    now: datetime.datetime = NOW,
    service: str = "elasticache",
    session_token: str = "",
) -> str:
    """The token as the description of Signature Version 4 has it, without the SDK."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/eu-west-1/{service}/aws4_request"
    query = (
        f"{parameters}&X-Amz-Algorithm=AWS4-HMAC-SHA256"
        f"&X-Amz-Credential={KEY_ID}%2F{scope.replace('/', '%2F')}"
        f"&X-Amz-Date={stamp}&X-Amz-Expires=900&X-Amz-SignedHeaders=host{session_token}"
    )
    in_order = "&".join(sorted(query.split("&")))
    nothing = hashlib.sha256(b"").hexdigest()
    request = f"GET\n/\n{in_order}\nhost:{cache}\n\nhost\n{nothing}"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    signature = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
    return f"{cache}/?{query}&X-Amz-Signature={signature}"


async def test_an_iam_token_is_the_presigned_request_that_aws_asks_for(
    aws: pytest.MonkeyPatch,
) -> None:
    provider = provider_for(IAM)
    assert await provider.credentials() == (
        "app",
        token_by_hand("my-cache", "Action=connect&User=app"),
    )
    assert provider.max_age_seconds == 12 * 3600


async def test_an_iam_token_for_a_serverless_cache_names_the_kind(aws: pytest.MonkeyPatch) -> None:
    expected = token_by_hand("my-cache", "Action=connect&User=app%2B1&ResourceType=ServerlessCache")
    text = IAM.replace("user=app", "user=app%2B1")
    for url in (text.replace("rediss:", "redis+serverless:"), text + "&serverless=true"):
        assert (await provider_for(url).credentials()).password == expected
    node_based = text.replace("rediss:", "redis+serverless:") + "&serverless=false"
    token = (await provider_for(node_based).credentials()).password
    assert token == token_by_hand("my-cache", "Action=connect&User=app%2B1")


async def test_an_iam_token_for_memorydb_with_temporary_keys(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)
    credentials = await provider_for(
        "rediss+cluster://app@h?auth=iam&region=eu-west-1&cache=db&service=memorydb"
    ).credentials()
    expected = token_by_hand(
        "db",
        "Action=connect&User=app",
        service="memorydb",
        session_token="&X-Amz-Security-Token=session%2Btoken%2F%3D%3D",
    )
    assert credentials == ("app", expected)


async def test_each_connect_gets_a_fresh_iam_token(aws: pytest.MonkeyPatch) -> None:
    provider = provider_for(IAM)
    first = await provider.credentials()
    later = NOW + datetime.timedelta(minutes=20)
    set_clock(aws, later)
    second = await provider.credentials()
    assert first != second
    assert second.password == token_by_hand("my-cache", "Action=connect&User=app", now=later)


async def test_signing_does_not_hold_up_the_event_loop(aws: pytest.MonkeyPatch) -> None:
    seen = []
    aws.setattr(
        botocore.auth,
        "get_current_datetime",
        lambda: seen.append(threading.current_thread()) or NOW,  # type: ignore[func-returns-value]
    )
    await provider_for(IAM).credentials()
    assert seen
    assert threading.main_thread() not in seen


async def test_rotated_aws_keys_are_found(aws: pytest.MonkeyPatch, tmp_path: Path) -> None:
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    provider = provider_for(IAM)
    for key_id in ("AKIDONE", "AKIDTWO"):
        (tmp_path / "credentials").write_text(
            f"[default]\naws_access_key_id={key_id}\naws_secret_access_key=x\n", encoding="utf-8"
        )
        assert f"X-Amz-Credential={key_id}%2F" in str((await provider.credentials()).password)


async def test_no_aws_credentials_is_an_auth_error_that_says_what_to_do(
    aws: pytest.MonkeyPatch,
) -> None:
    aws.delenv("AWS_ACCESS_KEY_ID")
    aws.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AuthError, match="no AWS credentials found; give this process AWS cred"):
        await provider_for(IAM).credentials()
    aws.setenv("AWS_ACCESS_KEY_ID", KEY_ID)  # and no secret: the SDK raises an error of its own
    with pytest.raises(AuthError, match=r"PartialCredentialsError.*; give this process"):
        await provider_for(IAM).credentials()


# Azure and Google: against fakes of their SDKs; the services were not tried


class Sdk:
    """Replaces `azure.identity` and `google.auth`: returns tokens or raises."""

    def __init__(self) -> None:
        self.token = "token-1"
        self.lifetime_seconds = 3600.0
        self.error: Exception | None = None
        self.asked: list[object] = []
        self.valid = False

    def _answer(self, asked: object) -> None:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error

    def get_token(self, scope: str) -> Any:
        self._answer(scope)
        return types.SimpleNamespace(
            token=self.token, expires_on=int(time.time() + self.lifetime_seconds)
        )

    def default(self, scopes: list[str]) -> tuple[Sdk, str]:
        self._answer(scopes)
        return self, "project"

    def refresh(self, request: object) -> None:
        self._answer(request)
        self.valid = True


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    fake = Sdk()
    for name in ("azure", "google", "google.auth.transport"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    identity: Any = types.ModuleType("azure.identity")
    identity.DefaultAzureCredential = lambda: fake
    monkeypatch.setitem(sys.modules, "azure.identity", identity)
    google: Any = types.ModuleType("google.auth")
    google.default = fake.default
    monkeypatch.setitem(sys.modules, "google.auth", google)
    transport: Any = types.ModuleType("google.auth.transport.requests")
    transport.Request = lambda: "a request"
    monkeypatch.setitem(sys.modules, "google.auth.transport.requests", transport)
    return fake


def jwt(**claims: str) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"head.{body}.signature"


async def test_an_entra_token_names_the_user_unless_the_url_does(sdk: Sdk) -> None:
    sdk.token = jwt(oid="1234-abcd")
    provider = provider_for("rediss://h?auth=entra")
    assert await provider.credentials() == ("1234-abcd", sdk.token)
    assert sdk.asked == ["https://redis.azure.com/.default"]
    named = provider_for("rediss://h?auth=entra&user=my-id")
    assert (await named.credentials()).username == "my-id"
    for opaque in ("opaque", "a.%%.c", jwt(sub="x")):
        sdk.token = opaque
        with pytest.raises(AuthError, match="option 'user'") as caught:
            await provider.credentials()
        assert opaque not in str(caught.value)


async def test_an_entra_link_is_replaced_before_its_token_ends(sdk: Sdk) -> None:
    sdk.token = jwt(oid="me")
    provider = provider_for("rediss://h?auth=entra")
    assert provider.max_age_seconds  # for who asks before the first token
    await provider.credentials()
    assert provider.max_age_seconds == pytest.approx(3600 - 180, abs=3)
    sdk.lifetime_seconds = 400  # from the SDK's cache
    await provider.credentials()
    assert provider.max_age_seconds == pytest.approx(400 - 180, abs=3)
    sdk.lifetime_seconds = 10
    await provider.credentials()
    assert provider.max_age_seconds == 30


async def test_a_google_token_is_renewed_when_the_sdk_says_so(sdk: Sdk) -> None:
    provider = provider_for("rediss+cluster://h?auth=google")
    assert await provider.credentials() == ("default", "token-1")
    assert sdk.asked == [["https://www.googleapis.com/auth/cloud-platform"], "a request"]
    await provider.credentials()
    assert len(sdk.asked) == 2
    sdk.valid = False
    sdk.token = "token-2"
    assert await provider.credentials() == ("default", "token-2")
    assert provider.max_age_seconds is None


@pytest.mark.parametrize(
    ("auth", "refused", "unreachable"),
    [
        ("entra", "ClientAuthenticationError", "ServiceRequestError"),
        ("google", "DefaultCredentialsError", "TransportError"),
    ],
)
async def test_what_an_sdk_raises_becomes_an_error_of_ours(
    sdk: Sdk, auth: str, refused: str, unreachable: str
) -> None:
    provider = provider_for(f"rediss://h?auth={auth}")
    sdk.error = type(refused, (Exception,), {})("nothing found\nand much more")
    with pytest.raises(
        AuthError, match=rf"no token: {refused}: nothing found; give this process .+(AZURE|GOOGLE)_"
    ) as caught:
        await provider.credentials()
    assert caught.value.__cause__ is None  # Its frames may hold secrets.
    sdk.error = type("Lower", (type(unreachable, (Exception,), {}),), {})("timed out")
    with pytest.raises(ConnectError, match="timed out") as now:
        await provider.credentials()
    assert not isinstance(now.value, AuthError)


# Configuration


@pytest.mark.parametrize(
    ("auth", "module", "extra"),
    [
        ("iam", "botocore.auth", "aws"),
        ("entra", "azure.identity", "azure"),
        ("google", "google.auth.transport.requests", "gcp"),
    ],
)
def test_a_missing_package_names_the_extra(
    auth: str, module: str, extra: str, sdk: Sdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'django-sockets\[{extra}\]>=4"):
        provider_for(f"rediss://h?auth={auth}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("redis://h?auth=ima", "option auth: unknown; did you mean 'iam'"),
        ("redis://h?auth=file", "auth=file needs the option 'auth_file'"),
        ("redis://h?region=x", "'region' means nothing for auth=url"),
        ("redis://h?auth=env&user=x", "'user' means nothing for auth=env"),
        (
            "redis://h?connection_max_age_seconds=0",
            "option connection_max_age_seconds: use a number",
        ),
        ("redis://h?connection_max_age_seconds=soon", "option connection_max_age_seconds: use"),
        ("redis://h?connection_max_age_seconds=nan", "option connection_max_age_seconds: use"),
        ("redis://h?auht=env", "unknown option 'auht'; did you mean 'auth'"),
        (IAM.replace("&user=app", ""), "auth=iam needs the option 'user'"),
        (IAM.replace("&region=eu-west-1", ""), "auth=iam needs the option 'region'"),
        (IAM.replace("&cache=My-Cache", ""), "auth=iam needs the option 'cache'"),
        (IAM.replace("My-Cache", "a.b.amazonaws.com"), "not an endpoint"),
        (IAM + "&service=redis", "option service: use 'elasticache' or 'memorydb'"),
        (IAM + "&serverless=yes", "option serverless: use 'true' or 'false'"),
        (IAM + "&serverless=true&service=memorydb", "memorydb has no serverless"),
        (IAM.replace("rediss:", "redis:"), "works over TLS only: write rediss://"),
        (IAM.replace("rediss:", "redis+cluster:"), r"TLS only: write rediss\+cluster://"),
        ("redis+cluster://h?auth=google", "auth=google works over TLS only"),
        ("redis://:hunter2@h?auth=env", "a password conflicts with auth=env"),
        ("rediss://:hunter2@h?auth=entra", "a password conflicts with auth=entra"),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        provider_for(text)
    assert "hunter2" not in str(caught.value)


def test_a_shorter_age_can_be_asked_for(aws: pytest.MonkeyPatch) -> None:
    assert provider_for("redis://h?connection_max_age_seconds=90").max_age_seconds == 90
    assert provider_for(IAM + "&connection_max_age_seconds=3600").max_age_seconds == 3600
    assert provider_for(IAM + "&connection_max_age_seconds=99999").max_age_seconds == 43200


def test_every_option_has_its_help() -> None:
    assert all(AUTH_OPTIONS.values())


def test_connections_are_replaced_well_before_their_age_and_not_together() -> None:
    source = random.Random(1)
    delays = [rotation_delay_seconds(43200, source.random()) for _ in range(1000)]
    assert 0.75 * 43200 <= min(delays) < 0.76 * 43200
    assert 0.89 * 43200 < max(delays) <= 0.90 * 43200


# Providers of others


THIRD_PARTY = """
class Vault:
    options = {"vault_role": "the role to ask for"}
    max_age_seconds = 60

    def __init__(self, url, extra):
        self.role = extra["vault_role"]

    async def credentials(self):
        if self.role == "bad":
            raise KeyError("hunter2")
        return self.role, "hunter2"
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A provider of a third party, as pip would install it."""
    (tmp_path / "vault_for_tests.py").write_text(THIRD_PARTY, encoding="utf-8")
    metadata = tmp_path / "vault_for_tests-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: vault_for_tests\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(
        "[django_sockets.credentials]\nvault = vault_for_tests:Vault\nurl = vault_for_tests:Vault\n"
        "broken = vault_for_tests:Missing\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("vault_for_tests", None)


@pytest.mark.usefixtures("installed")
async def test_an_installed_provider_is_found_with_its_options() -> None:
    provider = provider_for("redis://h?auth=vault&vault_role=web&connection_max_age_seconds=90")
    assert await provider.credentials() == ("web", "hunter2")
    assert isinstance(await provider.credentials(), Credentials)
    assert provider.max_age_seconds == 60
    assert await provider_for("redis://:pw@h").credentials() == (None, "pw")
    with pytest.raises(ConfigurationError, match="unknown option 'vault_rol'; did you mean"):
        provider_for("redis://h?auth=vault&vault_rol=web")
    with pytest.raises(ConfigurationError, match="auth=broken: cannot load vault_for_tests:Miss"):
        provider_for("redis://h?auth=broken")


@pytest.mark.usefixtures("installed")
async def test_an_installed_provider_that_fails_does_not_leak_its_exception() -> None:
    with pytest.raises(AuthError, match="provider Vault failed: KeyError") as caught:
        await provider_for("redis://h?auth=vault&vault_role=bad").credentials()
    assert "hunter2" not in str(caught.value)


async def test_the_provider_in_the_docs_works(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    example = text.partition("# my_package/vault.py\n")[2].partition("```")[0]
    secrets: dict[str, Any] = {
        "database/creds/web": {"data": {"username": "web", "password": "hunter2"}}
    }
    hvac: Any = types.ModuleType("hvac")
    hvac.Client = lambda: types.SimpleNamespace(read=secrets.get)
    monkeypatch.setitem(sys.modules, "hvac", hvac)
    names: dict[str, Any] = {}
    exec(example, names)
    url = BrokerURL.parse("redis://h")
    provider = names["VaultCredentials"](url, {"vault_path": "database/creds/web"})
    assert await provider.credentials() == ("web", "hunter2")
    with pytest.raises(AuthError, match="no credentials at 'database/creds/cache'"):
        await names["VaultCredentials"](url, {}).credentials()


# Secrets


async def test_no_secret_shows(
    aws: pytest.MonkeyPatch, sdk: Sdk, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG, "django_sockets")
    aws.setenv("DJANGO_SOCKETS_PASSWORD", "hunter2")
    sdk.token = jwt(oid="me")
    (tmp_path / "secret").write_text("hunter2", encoding="utf-8")
    texts = [
        "redis://me:hunter2@h",
        "redis://h?auth=env",
        f"redis://h?auth=file&auth_file={tmp_path / 'secret'}",
        IAM,
        "rediss://h?auth=entra",
        "rediss://h?auth=google",
    ]
    for text in texts:
        provider = provider_for(text)
        credentials = await provider.credentials()
        assert credentials.password
        shown = [f"{thing!r} {thing}" for thing in (provider, credentials)]
        shown.append(f"{provider._inner!r}")  # type: ignore[attr-defined]
        shown += [record.getMessage() for record in caplog.records]
        for secret in (credentials.password, "hunter2", SECRET):
            assert secret not in " ".join(shown), text
    assert repr(Credentials("me", None)) == "Credentials(username='me', password=None)"


def test_every_cloud_class_is_reached_by_a_name() -> None:
    names = {getattr(cloud_credentials, name).auth for name in cloud_credentials.__all__}
    assert names == {"entra", "google", "iam"}
