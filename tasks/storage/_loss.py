"""How much a bucket lacks of the one it is copied from: a pure decision over two views."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from tasks.contract import Facts
from tasks.storage.protocol import BucketView


@dataclass(frozen=True)
class Loss:
    """``objects_behind`` None: the source did not answer. ``bound_s`` None: nothing tells how much time is missing."""

    objects_behind: int | None
    bound_s: float | None
    basis: str

    def within(self, allowed_s: float | None) -> bool:
        return allowed_s is None or (self.bound_s is not None and self.bound_s <= allowed_s)

    def facts(self, allowed_s: float | None) -> Facts:
        return {**asdict(self), "allowed_s": allowed_s, "met": self.within(allowed_s)}

    def __str__(self) -> str:
        objects = "an unknown number of objects" if self.objects_behind is None else f"{self.objects_behind} objects"
        time = "over an unknown time" if self.bound_s is None else f"over at most {self.bound_s:.1f} s"
        return f"{objects} {time} ({self.basis})"


def loss(
    site: BucketView,
    source_site: str,
    source: BucketView | None,
    incident_at: datetime,
    marked_by: str = "the copier's mark",
) -> Loss:
    """What ``site`` lacks of ``source_site``; ``source`` None where it does not answer.

    The last moment that is certainly here is the copier's mark, and without one the newest object that arrived.
    With the source dark, what it took between that moment and the start of the incident may be lost: the usual
    meaning of a recovery point. An object that arrived is a weaker witness than a mark, so ``basis`` names which.
    """
    mark = _mark(site, source_site)
    sure = mark or _time(site.newest)
    witness = marked_by if mark else "the newest object copied"
    if source is None:
        if sure is None:
            return Loss(None, None, f"{source_site} is silent and nothing was copied from it yet")
        gap_s = max(0.0, (incident_at - sure).total_seconds())
        return Loss(None, round(gap_s, 3), f"{source_site} is silent; from {witness} to the start of the incident")
    behind = max(0, source.objects - site.objects)
    newest = _time(source.newest)
    same = source.objects < site.objects or source.bytes == site.bytes or bool(mark and newest and newest <= mark)
    if behind == 0 and same:
        return Loss(0, 0.0, "counts agree")
    if newest is None or sure is None:
        return Loss(behind, None, "nothing was copied yet")
    return Loss(behind, round(max(0.0, (newest - sure).total_seconds()), 3), f"from {witness} to the source's newest")


def _mark(site: BucketView, source_site: str) -> datetime | None:
    return _time(site.copied.get(source_site))


def _time(text: str | None) -> datetime | None:
    """None for a mark that is no aware ISO 8601 time: then it proves nothing."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found if found and found.tzinfo else None
