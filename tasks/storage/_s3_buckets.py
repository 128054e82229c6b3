"""How the buckets of ``storage.s3`` are reached: settings, a client a site, errors as ours, and whose a bucket is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.aws import Account, Aws, hearing
from tasks.contract import Surroundings, in_thread
from tasks.errors import BadInput, Rejected, Unreachable
from tasks.marks import owned
from tasks.quantities import Duration
from tasks.secrets import SecretRef, resolve
from tasks.variables import expand

T = TypeVar("T")


class Bucket(BaseModel):
    """One site's bucket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    """Base URL of the store; None is AWS itself."""
    bucket: str = Field(min_length=3)
    region: str | None = None
    """Of this bucket; None: the component's. A call goes there and nowhere else."""
    marked: bool | None = None
    """It must carry the tag ``relight:system`` before it is changed. None: where the store is AWS itself."""


class S3Settings(BaseModel):
    """As in ``runbooks/lab/system.yaml``, component ``storage``.

    Without keys the credentials are boto3's own (environment, profile, role), as for every AWS provider.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: Duration = 2.0
    """To connect, and to wait for each read; a call is sent at most twice."""
    access_key: SecretRef | None = None
    secret_key: SecretRef | None = None
    region: str = "us-east-1"
    sites: dict[str, Bucket] = Field(min_length=1)

    @model_validator(mode="after")
    def _both_keys_or_none(self) -> S3Settings:
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key belong together: give both or neither")
        return self


class Buckets:
    """Every call of one component."""

    def __init__(self, settings: S3Settings, around: Surroundings) -> None:
        self._settings = settings
        self._component, self._around = around.component, around
        self._aws = Aws(Account(timeout=settings.timeout), around.component)
        self._clients: dict[str, tuple[tuple[str | None, str | None], Any]] = {}
        self._building = asyncio.Lock()

    async def aclose(self) -> None:
        await self._aws.aclose()
        for _, client in self._clients.values():
            client.close()
        self._clients.clear()

    def _must_be_marked(self, bucket: Bucket) -> bool:
        return bucket.endpoint is None if bucket.marked is None else bucket.marked

    def _ours(self, site: str, tags: dict[str, str]) -> None:
        """Raises SafetyRefusal for a bucket of somebody else."""
        if self._must_be_marked(self._bucket(site)):
            owned(self._name(site), tags, self._around.system)

    async def _tags(self, site: str) -> dict[str, str]:
        bucket = self._bucket(site)
        client = await self._client(site)

        def read() -> dict[str, str]:
            try:
                found = client.get_bucket_tagging(Bucket=bucket.bucket)
            except ClientError as e:
                if e.response["Error"]["Code"] == "NoSuchTagSet":
                    return {}
                raise
            return {t["Key"]: t["Value"] for t in found["TagSet"]}

        return await self._call(site, "reading the tags", read)

    async def _call(self, site: str, what: str, call: Callable[[], T], lost: type[Exception] = Unreachable) -> T:
        """Runs ``call`` in a thread; botocore's errors as ours. ``lost``: what a lost reply means for this call."""
        try:
            return await in_thread(call)
        except BotoConnectionError as e:  # refused, unresolved, TLS, or no connection in time
            raise Unreachable(f"{self._name(site)}: no connection for {what} ({e})") from e
        except HTTPClientError as e:  # closed, or silent for longer than the time-out, after the request went out
            raise lost(f"{self._name(site)}: no answer to {what} within {self._settings.timeout:g} s ({e})") from e
        except ClientError as e:
            status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status >= 500 or status == 429:
                raise lost(f"{self._name(site)}: {what} failed on the other side, HTTP {status} ({e})") from e
            code = e.response["Error"].get("Code", "?")
            raise Rejected(f"{self._name(site)}: {what} was refused: {code}, HTTP {status} ({e})", code=code) from e
        except BotoCoreError as e:
            raise Rejected(f"{self._name(site)}: {what} could not be sent ({e})") from e

    async def _client(self, site: str) -> Any:
        """The site's client; built again when its keys have changed. Building reads botocore's files: in a thread."""
        bucket = self._bucket(site)
        settings = self._settings
        refs = (settings.access_key, settings.secret_key)
        access, secret = (None if ref is None else resolve(ref).get_secret_value() for ref in refs)
        region = bucket.region or settings.region
        endpoint = expand(bucket.endpoint) if bucket.endpoint else None

        def build() -> Any:
            client = boto3.session.Session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                aws_access_key_id=access,
                aws_secret_access_key=secret,
                config=Config(
                    connect_timeout=settings.timeout,
                    read_timeout=settings.timeout,
                    retries={"total_max_attempts": 2, "mode": "standard"},
                    s3={"addressing_style": "path"},
                ),
            )
            return hearing(client, "s3", region)

        async with self._building:
            have = self._clients.get(site)
            if have is None or have[0] != (access, secret):
                self._clients[site] = ((access, secret), await in_thread(build))
            return self._clients[site][1]

    def _name(self, site: str) -> str:
        return f"{self._component}: bucket {self._bucket(site).bucket} of {site}"

    def _bucket(self, site: str) -> Bucket:
        try:
            return self._settings.sites[site]
        except KeyError:
            known = ", ".join(self._settings.sites)
            raise BadInput(f"{self._component}: no site {site!r} in its settings; known: {known}") from None
