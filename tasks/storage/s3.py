"""One bucket a site of any S3-compatible store (AWS S3, Supabase Storage, the lab's server).

Which site a bucket is copied from is the bucket's tag ``relight-source``; a copier in the destination's site reads
it before each pass and stops when it is gone. After each complete pass it may leave the time at which the pass
began (ISO 8601 UTC) as object ``relight-probe/copied-from-SITE``; that is what bounds a loss when the source is dark.
Sources: Amazon S3 API reference (ListObjectsV2, PutBucketTagging replaces the whole set), botocore ``Config``.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.aws import hearing
from tasks.contract import Surroundings, in_thread
from tasks.errors import BadInput, EffectUnknown, Rejected, Unreachable
from tasks.manual import secret
from tasks.quantities import Duration
from tasks.secrets import SecretRef, resolve
from tasks.storage.protocol import BucketView
from tasks.variables import expand

T = TypeVar("T")

TAG = "relight-source"
PREFIX = "relight-probe/"
MARK = f"{PREFIX}copied-from-"


class Bucket(BaseModel):
    """One site's bucket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    """Base URL of the store; None is AWS itself."""
    bucket: str = Field(min_length=3)
    region: str | None = None
    """Of this bucket; None: the component's. A call goes there and nowhere else."""


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


class S3:
    """Fulfils ``tasks.storage.protocol.Storage``."""

    Settings: ClassVar[type[BaseModel]] = S3Settings

    def __init__(self, settings: S3Settings, around: Surroundings) -> None:
        self._settings = settings
        self._component = around.component
        self._clients: dict[str, tuple[tuple[str | None, str | None], Any]] = {}
        self._building = asyncio.Lock()

    async def view(self, site: str) -> BucketView:
        """Counts every object but relight's own; one request per 1000 objects."""
        bucket = self._bucket(site)
        client = await self._client(site)

        def listed() -> BucketView:
            objects = size = 0
            newest: datetime | None = None
            marks: dict[str, str] = {}
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket.bucket):
                for item in page.get("Contents", ()):
                    if item["Key"].startswith(MARK):
                        body = client.get_object(Bucket=bucket.bucket, Key=item["Key"])["Body"].read(64)
                        marks[item["Key"].removeprefix(MARK)] = body.decode("ascii", "replace").strip()
                    if item["Key"].startswith(PREFIX):
                        continue
                    objects += 1
                    size += item["Size"]
                    newest = max(newest or item["LastModified"], item["LastModified"])
            return BucketView(site, objects, size, newest.astimezone(UTC).isoformat() if newest else None, marks)

        return await self._call(site, "listing", listed)

    async def probe(self, site: str, nonce: str) -> None:
        """A lost reply is Unreachable here: the object is relight's own and the probe may be repeated."""
        bucket = self._bucket(site)
        client = await self._client(site)
        where = {"Bucket": bucket.bucket, "Key": f"{PREFIX}{nonce}"}

        def written() -> bytes:
            client.put_object(**where, Body=nonce.encode())
            try:
                return bytes(client.get_object(**where)["Body"].read())
            finally:
                client.delete_object(**where)

        body = await self._call(site, "read-back probe", written)
        if body != nonce.encode():
            raise Rejected(
                f"{self._name(site)}: read back {body[:40]!r} where {nonce!r} was written. "
                "Look for a cache or another writer in front of it."
            )

    async def source(self, site: str) -> str | None:
        return (await self._tags(site)).get(TAG) or None

    async def stand_alone_line(self, site: str) -> str:
        """See ``tasks.storage.manual.ByHand``: every other tag is kept."""
        s, bucket = self._settings, self._bucket(site)
        keys = ""  # without any: those of the shell's own AWS configuration
        if s.access_key and s.secret_key:
            keys = f'AWS_ACCESS_KEY_ID="{secret(s.access_key)}" AWS_SECRET_ACCESS_KEY="{secret(s.secret_key)}" '
        words = ["aws", "--region", bucket.region or s.region]
        words += ["--endpoint-url", expand(bucket.endpoint)] if bucket.endpoint else []
        kept = [{"Key": k, "Value": v} for k, v in sorted((await self._tags(site)).items()) if k != TAG]
        words += ["s3api", "put-bucket-tagging" if kept else "delete-bucket-tagging", "--bucket", expand(bucket.bucket)]
        words += ["--tagging", json.dumps({"TagSet": kept})] if kept else []
        return keys + shlex.join(words)

    async def set_source(self, site: str, source: str | None) -> None:
        """Keeps every other tag. S3 has no compare-and-set on tags; the run's lease is what keeps others out."""
        if source is not None:
            self._bucket(source)
        if source == site:
            raise BadInput(f"{self._name(site)}: cannot be copied from itself")
        before = await self._tags(site)
        after = {k: v for k, v in before.items() if k != TAG} | ({TAG: source} if source else {})
        if after == before:
            return
        bucket = self._bucket(site)
        client = await self._client(site)

        def tagged() -> None:
            if after:
                tags = [{"Key": k, "Value": v} for k, v in sorted(after.items())]
                client.put_bucket_tagging(Bucket=bucket.bucket, Tagging={"TagSet": tags})
            else:  # an empty set is not accepted everywhere
                client.delete_bucket_tagging(Bucket=bucket.bucket)

        await self._call(site, "tagging", tagged, lost=EffectUnknown)

    async def aclose(self) -> None:
        for _, client in self._clients.values():
            client.close()
        self._clients.clear()

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


PROVIDER = S3
