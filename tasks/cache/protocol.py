"""What every cache can say and do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Cache(Protocol):
    """One cache a site. A key is a path (HTTP) or a name (Redis)."""

    def sites(self) -> tuple[str, ...]: ...

    async def flushed_by(self, site: str) -> str | None:
        """The run that flushed it last, as far as it is known; None: nobody that is known of.

        Raises Unreachable, NotYet (it is loading), Rejected, SafetyRefusal (not marked).
        """
        ...

    async def flush(self, site: str, run_id: str) -> None:
        """Nothing that was kept before is served any more. Safe to repeat. Raises EffectUnknown too."""
        ...

    async def has(self, site: str, key: str) -> bool:
        """``key`` is served from the cache now."""
        ...

    async def warm(self, site: str, key: str) -> None:
        """Fetch ``key`` as a client does, so that it is kept. Raises Unreachable, Rejected (no good answer)."""
        ...
