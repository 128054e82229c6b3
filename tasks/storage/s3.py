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
from collections import Counter
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import BaseModel

from tasks.errors import BadInput, EffectUnknown, Rejected
from tasks.manual import secret
from tasks.storage import _s3_compare as reading
from tasks.storage._s3_buckets import Buckets, S3Settings
from tasks.storage._s3_metrics import copied_until
from tasks.storage.protocol import BucketView, Compared, Replicating
from tasks.variables import expand

TAG = "relight-source"
PREFIX = "relight-probe/"
MARK = f"{PREFIX}copied-from-"


class S3(Buckets):
    """Fulfils ``tasks.storage.protocol.Storage`` and ``Replicated``; changes no bucket of AWS that is not marked."""

    Settings: ClassVar[type[BaseModel]] = S3Settings

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
        if self._must_be_marked(bucket):
            self._ours(site, await self._tags(site))

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
        self._ours(site, before)
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

    async def replicating(self, site: str, source: str, sample: int) -> Replicating:
        here, there = self._bucket(site).bucket, self._bucket(source).bucket
        mine, theirs = await asyncio.gather(self._client(site), self._client(source))

        def of_source() -> tuple[bool, list[dict[str, Any]], dict[str, str]]:
            rules = reading.rules_to(theirs, there, here)
            found = reading.statuses(theirs, there, PREFIX, sample) if sample else {}
            return reading.versioned(theirs, there), rules, found

        (their_versions, rules, statuses), my_versions, (until, latency_s) = await asyncio.gather(
            self._call(source, "reading how it is replicated", of_source),
            self._call(site, "reading its versioning", lambda: reading.versioned(mine, here)),
            self.replicated_until(site, source),
        )
        return Replicating(
            site,
            source,
            {site: my_versions, source: their_versions},
            tuple(str(r.get("ID", "?")) for r in rules),
            dict(Counter(statuses.values())),
            tuple(k for k, s in statuses.items() if s == "FAILED")[: reading.EXAMPLES],
            reading.time_control_s(rules),
            until,
            latency_s,
        )

    async def replicated_until(self, site: str, source: str) -> tuple[str | None, float | None]:
        """Nothing for a store with an endpoint or keys of its own: CloudWatch has figures of AWS's buckets only."""
        mine, theirs, settings = self._bucket(site), self._bucket(source), self._settings
        if mine.endpoint or settings.access_key:
            return None, None
        now = self._around.clock.utc()
        return await copied_until(self._aws, mine.region or settings.region, theirs.bucket, mine.bucket, now)

    async def compare(self, site: str, source: str, sample: int) -> Compared:
        mine, theirs = await asyncio.gather(self._client(site), self._client(source))
        pairs = (mine, self._bucket(site).bucket), (theirs, self._bucket(source).bucket)
        both = f"comparing with {pairs[1][1]} of {source}"
        return await self._call(site, both, lambda: reading.Comparing(*pairs, PREFIX).run(sample))


PROVIDER = S3
