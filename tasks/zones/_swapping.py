"""One compare-and-set as it goes: what is true after an answer that does not tell, and what to say of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tasks.errors import EffectUnknown, LeaseHeld, LostCompare, NotYet, Rejected, RelightError, Unreachable
from tasks.zones import _records as records
from tasks.zones.protocol import Owned, RRset


@dataclass(frozen=True)
class Swap:
    """``label`` names the server or hosted zone in messages; ``new`` is canonical."""

    component: str
    label: str
    old: Owned
    new: RRset
    epoch: int

    def check_epoch(self) -> None:
        """Raises LeaseHeld where what was seen is already newer than this run."""
        if self.old.epoch is not None and self.old.epoch > self.epoch:
            raise self.newer(self.old.epoch)

    def settled(self, now: Owned, otherwise: Callable[[Owned], RelightError]) -> None:
        """Return when ``now`` is our change; raise LeaseHeld for a newer run's, else what ``otherwise`` says."""
        if now.epoch == self.epoch and now.rrset == self.new:
            return
        if now.epoch is not None and now.epoch > self.epoch:
            raise self.newer(now.epoch)
        raise otherwise(now)

    async def settle(self, read: Callable[[], Awaitable[Owned]], otherwise: Callable[[Owned], RelightError]) -> None:
        """``settled`` by what ``read`` finds. Raises EffectUnknown where that cannot be read."""
        try:
            now = await read()
        except (Unreachable, Rejected, NotYet) as e:
            wanted = records.values_shown(self.new)
            raise EffectUnknown(f"{self.label}: cannot tell whether {wanted} is in: {e}") from e
        self.settled(now, otherwise)

    def lost(self, now: Owned, said: str) -> LostCompare:
        """The error for a compare that found ``now``; ``said``: in the server's words."""
        return LostCompare(
            f"{self.label} changed nothing ({said}): expected to find {records.shown(self.old)}, found"
            f" {records.shown(now)}. Somebody else wrote in between, or the name has a CNAME. Find out who, then run"
            " again.",
            said=said,
            found=list(now.rrset.values) if now.rrset else [],
            found_epoch=now.epoch,
        )

    def newer(self, zone_epoch: int) -> LeaseHeld:
        """The error for a run that was overtaken."""
        return LeaseHeld(
            f"{self.component}: {self.new.name} was last written by epoch {zone_epoch}; this run is epoch {self.epoch},"
            " no longer the newest. Look for the newer run.",
            zone_epoch=zone_epoch,
            epoch=self.epoch,
        )
