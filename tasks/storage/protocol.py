"""What every object store can say and do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class BucketView:
    """One site's bucket now: how many objects, how many bytes, and the newest change (ISO 8601 UTC or None)."""

    site: str
    objects: int
    bytes: int
    newest: str | None
    copied: Mapping[str, str] = field(default_factory=dict)
    """source site -> ISO 8601 UTC: all that the source held then is here, where the copier leaves such a mark."""


@runtime_checkable
class Storage(Protocol):
    """One bucket a site, the active one copied to the others."""

    async def view(self, site: str) -> BucketView:
        """Raises Unreachable, Rejected."""
        ...

    async def probe(self, site: str, nonce: str) -> None:
        """Write an object under the probe prefix, read it back, delete it. Raises Unreachable, Rejected."""
        ...

    async def source(self, site: str) -> str | None:
        """The site whose objects are copied into ``site``'s bucket; None when nothing is. Raises Unreachable."""
        ...

    async def set_source(self, site: str, source: str | None) -> None:
        """Change where ``site``'s bucket is copied from; None stops the copying, so that it may be written."""
        ...
