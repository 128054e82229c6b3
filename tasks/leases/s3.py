"""The lease as one object of an S3 bucket, written only under conditions.

``If-None-Match: *`` creates it, ``If-Match: ETAG`` replaces exactly what was read (Amazon S3 user guide, "Conditional
writes": 412 when the condition does not hold, 409 when another conditional write is under way). The age is the answer's
``Date`` less ``Last-Modified``, both from the store and in whole seconds.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from pydantic import BaseModel, ConfigDict, Field

from tasks.aws import hearing
from tasks.contract import Surroundings, in_thread
from tasks.errors import EffectUnknown, LostCompare, Rejected, RelightError, Unreachable
from tasks.leases.protocol import Held
from tasks.quantities import Duration
from tasks.secrets import SecretRef, resolve
from tasks.variables import expand

T = TypeVar("T")

_NOBODY = '"00000000000000000000000000000000"'
"""An ETag that no object has."""


class S3LeaseSettings(BaseModel):
    """As in ``docs/leases.md``. The bucket belongs in neither of the sites that a run moves between."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    """Base URL of the store; None is AWS itself."""
    bucket: str = Field(min_length=3)
    key: str = ""
    """Name of the object; ``relight/lease/SYSTEM`` when empty."""
    region: str = "us-east-1"
    access_key: SecretRef
    secret_key: SecretRef
    timeout: Duration = 2.0
    """To connect, and to wait for each read; a call is sent once."""
    ttl: Duration = Field(default=15.0, ge=5.0)


class S3Lease:
    """Fulfils ``tasks.leases.protocol.LeaseStore``."""

    Settings: ClassVar[type[BaseModel]] = S3LeaseSettings

    def __init__(self, settings: S3LeaseSettings, around: Surroundings) -> None:
        self._settings = settings
        self._key = settings.key or f"relight/lease/{around.system}"
        self._component = around.component
        self._client: tuple[tuple[str, str], Any] | None = None
        self._building = asyncio.Lock()
        self._seen: tuple[Held, str] | None = None
        """The record that was read or written last, and its ETag."""

    @property
    def ttl_s(self) -> float:
        return self._settings.ttl

    @property
    def where(self) -> str:
        return f"{self._component}: object {self._key} of bucket {self._settings.bucket}"

    async def read(self) -> tuple[Held | None, float | None]:
        client, where = await self._connected(), self._object()

        def got() -> tuple[str, str, Mapping[str, str]] | None:
            try:
                found = client.get_object(**where)
            except ClientError as e:
                if e.response["Error"].get("Code") == "NoSuchKey":
                    return None
                raise
            text = bytes(found["Body"].read()).decode("utf-8", "replace")
            return text, str(found["ETag"]), found["ResponseMetadata"]["HTTPHeaders"]

        answer = await self._call("reading", got, Unreachable)
        if answer is None:
            self._seen = None
            return None, None
        text, etag, headers = answer
        held = Held.decode(text, self.where)
        self._seen = (held, etag)
        return held, _age_s(headers)

    async def swap(self, old: Held | None, new: Held) -> None:
        condition: dict[str, str] = {"IfNoneMatch": "*"}
        if old is not None:
            if self._seen is None or self._seen[0] != old:
                await self.read()
            if self._seen is None or self._seen[0] != old:
                raise LostCompare(f"{self.where} is not what it was; it was written in between")
            condition = {"IfMatch": self._seen[1]}
        else:
            await self._must_compare()
        client, where = await self._connected(), self._object()
        self._seen = None
        etag = await self._call(
            "writing", lambda: str(client.put_object(**where, **condition, Body=new.encode().encode())["ETag"])
        )
        self._seen = (new, etag)

    async def aclose(self) -> None:
        if self._client is not None:
            self._client[1].close()
            self._client = None

    async def _must_compare(self) -> None:
        """Raises Rejected for a store that takes the conditions and ignores them, as older ones do."""
        client = await self._connected()
        # a key of its own: others may be asking at the same moment
        where = {"Bucket": self._settings.bucket, "Key": f"{self._key}.probe-{secrets.token_hex(8)}"}

        def tried() -> list[str]:
            ignored = []
            client.put_object(**where, Body=b"relight asks whether conditions count")
            for condition in ({"IfNoneMatch": "*"}, {"IfMatch": _NOBODY}):
                try:
                    client.put_object(**where, **condition, Body=b"they do not")
                    ignored.append(next(iter(condition)))
                except ClientError as e:
                    if e.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                        raise
            client.delete_object(**where)
            return ignored

        ignored = await self._call("asking whether conditions count", tried, Unreachable)
        if ignored:
            raise Rejected(
                f"{self.where}: the store ignores {' and '.join(ignored)}, so two engines could hold the lease at once."
                " Use one with conditional writes, or another provider of a lease."
            )

    async def _call(self, what: str, call: Callable[[], T], lost: type[RelightError] = EffectUnknown) -> T:
        """Runs ``call`` in a thread; botocore's errors as ours. ``lost``: what a lost reply means for this call."""
        try:
            return await in_thread(call)
        except BotoConnectionError as e:  # refused, unresolved, TLS, or no connection in time
            raise Unreachable(f"{self.where}: no connection for {what} ({e})") from e
        except HTTPClientError as e:  # closed, or silent for longer than the time-out, after the request went out
            raise lost(f"{self.where}: no answer to {what} within {self._settings.timeout:g} s ({e})") from e
        except ClientError as e:
            status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = e.response["Error"].get("Code", "?")
            if status in (409, 412) or code == "NoSuchKey":
                raise LostCompare(f"{self.where} is not what it was ({code}); it was written in between") from e
            if status >= 500 or status == 429:
                raise lost(f"{self.where}: {what} failed on the other side, HTTP {status} ({e})") from e
            raise Rejected(f"{self.where}: {what} was refused: {code}, HTTP {status} ({e})", code=code) from e
        except BotoCoreError as e:
            raise Rejected(f"{self.where}: {what} could not be sent ({e})") from e

    def _object(self) -> dict[str, str]:
        return {"Bucket": self._settings.bucket, "Key": self._key}

    async def _connected(self) -> Any:
        """The client; built again when its keys have changed. Building reads botocore's files: in a thread."""
        settings = self._settings
        keys = (resolve(settings.access_key).get_secret_value(), resolve(settings.secret_key).get_secret_value())

        def build() -> Any:
            client = boto3.session.Session().client(
                "s3",
                endpoint_url=expand(settings.endpoint) if settings.endpoint else None,
                region_name=settings.region,
                aws_access_key_id=keys[0],
                aws_secret_access_key=keys[1],
                config=Config(
                    connect_timeout=settings.timeout,
                    read_timeout=settings.timeout,
                    # sent once: a repeated conditional write would be refused because of the first
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    s3={"addressing_style": "path"},
                ),
            )
            return hearing(client, "s3", settings.region)

        async with self._building:
            if self._client is None or self._client[0] != keys:
                self._client = (keys, await in_thread(build))
            return self._client[1]


def _age_s(headers: Mapping[str, str]) -> float | None:
    """At least so old: a second is taken off for what whole seconds hide."""
    try:
        now, then = parsedate_to_datetime(headers["date"]), parsedate_to_datetime(headers["last-modified"])
    except (KeyError, ValueError, TypeError):
        return None
    return max(0.0, (now - then).total_seconds() - 1.0)


PROVIDER = S3Lease
