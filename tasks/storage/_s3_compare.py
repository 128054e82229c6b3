"""Two buckets, object by object, and how far replication has come: what is read with boto3's clients, in a thread.

S3 lists keys in the order of their UTF-8 bytes (ListObjectsV2), so two lists are compared as they come, and neither
is ever held whole. A key whose newest version is a delete marker is in no such list, but its data is still there
(*Working with delete markers*). Sources: Amazon S3 API reference, ListObjectVersions, HeadObject; *Replication status*.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tasks.storage.protocol import Compared

EXAMPLES = 10
MOST_BYTES = 1 << 20
"""Of a sampled object, the first so many are read."""

Item = dict[str, Any]


def listed(client: Any, bucket: str, prefix: str) -> Iterator[Item]:
    """Every object but those under ``prefix``, in the order of their keys, one request per 1000."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", ()):
            if not item["Key"].startswith(prefix):
                yield item


class Comparing:
    """``mine`` against ``theirs``: (client, bucket) each."""

    def __init__(self, mine: tuple[Any, str], theirs: tuple[Any, str], prefix: str) -> None:
        self._mine, self._theirs, self._prefix = mine, theirs, prefix
        self._found: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def run(self, sample: int) -> Compared:
        """Reads ``sample`` of the objects that both have, spread over all of them by a hash of the key."""
        chosen: list[tuple[str, str]] = []
        for theirs, mine in _side_by_side(listed(*self._theirs, self._prefix), listed(*self._mine, self._prefix)):
            if theirs is None:
                self._note("extra", mine or {})
                continue
            self._found["objects"] += 1
            if mine is None:
                self._note("hidden" if self._behind_a_marker(theirs["Key"]) else "missing", theirs)
            elif mine["Size"] != theirs["Size"]:
                self._note("different", theirs)
            elif sample:
                rank = hashlib.sha256(theirs["Key"].encode()).hexdigest()
                chosen = heapq.nsmallest(sample, [*chosen, (rank, theirs["Key"])])
        for _, key in chosen:
            self._read(key)
        examples = {what: tuple(keys) for what, keys in self._examples.items()}
        return Compared(**self._found, sampled=len(chosen), examples=examples)

    def _note(self, what: str, item: Item) -> None:
        self._found[what] += 1
        keys = self._examples.setdefault(what, [])
        if len(keys) < EXAMPLES:
            keys.append(item["Key"])

    def _behind_a_marker(self, key: str) -> bool:
        """The site has versions of ``key``: what hides them is a delete marker."""
        client, bucket = self._mine
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key):
            if any(v["Key"] == key for v in page.get("Versions", ())):
                return True
            if any(v["Key"] > key for v in page.get("Versions", ())):
                return False
        return False

    def _read(self, key: str) -> None:
        if len({_digest(client, bucket, key) for client, bucket in (self._mine, self._theirs)}) > 1:
            self._note("different", {"Key": key})


def _digest(client: Any, bucket: str, key: str) -> str:
    body = client.get_object(Bucket=bucket, Key=key)["Body"]
    try:
        return hashlib.sha256(body.read(MOST_BYTES)).hexdigest()
    finally:
        body.close()


def _side_by_side(left: Iterator[Item], right: Iterator[Item]) -> Iterator[tuple[Item | None, Item | None]]:
    """Both lists merged by key; None where one has no such key."""
    a, b = next(left, None), next(right, None)
    while a is not None or b is not None:
        first = min(x["Key"].encode() for x in (a, b) if x is not None)
        here = a if a is not None and a["Key"].encode() == first else None
        there = b if b is not None and b["Key"].encode() == first else None
        yield here, there
        a = next(left, None) if here is not None else a
        b = next(right, None) if there is not None else b


def versioned(client: Any, bucket: str) -> bool:
    """Versioning is on; *Suspended* is not."""
    return bool(client.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled")


def rules_to(client: Any, bucket: str, to: str) -> list[Item]:
    """Enabled rules that copy all of ``bucket`` to bucket ``to``; none where there is no configuration."""
    try:
        found = client.get_bucket_replication(Bucket=bucket)["ReplicationConfiguration"]["Rules"]
    except client.exceptions.ClientError as e:
        if e.response["Error"]["Code"] == "ReplicationConfigurationNotFoundError":
            return []
        raise
    return [r for r in found if r["Status"] == "Enabled" and _name(r) == to and not _filtered(r)]


def _name(rule: Item) -> str:
    return str(rule["Destination"]["Bucket"]).rpartition(":")[2]


def _filtered(rule: Item) -> bool:
    """A prefix or a tag: objects without it are not copied."""
    within = rule.get("Filter") or {}
    return bool(rule.get("Prefix") or within.get("Prefix") or within.get("Tag") or within.get("And"))


def time_control_s(rules: list[Item]) -> float | None:
    """The time of Replication Time Control, where a rule has it on."""
    minutes = [
        r["Destination"]["ReplicationTime"]["Time"]["Minutes"]
        for r in rules
        if r["Destination"].get("ReplicationTime", {}).get("Status") == "Enabled"
    ]
    return 60.0 * min(minutes) if minutes else None


def statuses(client: Any, bucket: str, prefix: str, sample: int) -> dict[str, str]:
    """Key -> replication status of the newest ``sample`` objects (HeadObject, x-amz-replication-status)."""
    newest = heapq.nlargest(sample, listed(client, bucket, prefix), key=lambda item: item["LastModified"])
    heads = {i["Key"]: client.head_object(Bucket=bucket, Key=i["Key"]).get("ReplicationStatus", "NONE") for i in newest}
    return {k: "COMPLETED" if s == "COMPLETE" else str(s) for k, s in heads.items()}  # both are in the API's model
