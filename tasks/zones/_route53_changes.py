"""What is at a name of a hosted zone, and the change batch that replaces exactly that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tasks.errors import BadInput, EffectUnknown, Rejected, RelightError
from tasks.zones import _records as records
from tasks.zones import _routing as routing
from tasks.zones._route53_calls import Route53Api
from tasks.zones._route53_settings import ZoneSettings
from tasks.zones._swapping import Swap
from tasks.zones.protocol import Owned, RRset

COMPARE_LOST = {"InvalidChangeBatch", "InvalidInput"}
"""Codes of a batch that did not fit what is there. Route 53 says the first, moto 5.2 the second."""
MOST_RECORDS, MOST_CHARACTERS = 1000, 32000
"""Of one batch: ResourceRecord elements, and characters of all their values (developer guide, *Quotas*)."""


@dataclass(frozen=True)
class Found:
    """What is at a name now: as boto3 has it, and in our words."""

    raw: tuple[dict[str, Any], ...]
    raw_epoch: tuple[dict[str, Any], ...]
    owned: Owned


class Changes:
    """Reads and replaces the record sets of one hosted zone. ``names``: (name, type) that have an epoch."""

    def __init__(
        self, settings: ZoneSettings, component: str, api: Route53Api, names: frozenset[tuple[str, str]]
    ) -> None:
        self.label = f"{component}: hosted zone {settings.hosted_zone} ({settings.zone})"
        self._api, self._names, self._known = api, names, False

    async def found(self, name: str, rdtype: str) -> Found:
        """Raises Rejected where the hosted zone is not the one that the settings name."""
        if not self._known:
            await self._api.hosted_zone()  # it is the zone that the settings name, or nothing is read from it
            self._known = True
        # The epoch first: were it to move before the record set is read, the compare of both would be lost.
        mine = (name, rdtype) in self._names
        epochs = await self._api.records(records.epoch_name(name), "TXT") if mine else []
        raw = [r for r in await self._api.records(name) if r["Type"] == rdtype]
        rrset = None
        if raw:
            rrset = RRset(name, rdtype, *routing.texts(tuple(routing.member_of(r) for r in raw)))
        return Found(tuple(raw), tuple(epochs), Owned(rrset, _epoch(name, epochs), None))

    async def send(self, swap: Swap) -> str:
        """Make the change. Returns its id, or nothing where the change is in and its id is not known.

        Raises as ``Zone.swap`` does.
        """
        swap.check_epoch()
        name, created = swap.new.name, _created(swap)
        before = await self.found(name, swap.new.rdtype)
        if not _same(before.owned, swap.old):
            swap.settled(before.owned, lambda now: swap.lost(now, "compared"))
            return ""
        _refuse_what_cannot_return(self.label, before)
        gone = [{"Action": "DELETE", "ResourceRecordSet": r} for r in (*before.raw, *before.raw_epoch)]
        changes = [*gone, *created]
        _need_within_limits(swap, changes)
        batch = {"Comment": f"relight epoch {swap.epoch}", "Changes": changes}
        read = partial(self._owned, name, swap.new.rdtype)
        try:
            return await self._api.change(f"changing {name} {swap.new.rdtype}", batch)
        except Rejected as e:
            if e.facts.get("code") not in COMPARE_LOST:
                raise
            await swap.settle(read, partial(self._refused, swap, e))
        except EffectUnknown as e:
            lost = e.message
            await swap.settle(read, lambda now: EffectUnknown(f"{lost}; {records.shown(now)}"))
        return ""

    async def _owned(self, name: str, rdtype: str) -> Owned:
        return (await self.found(name, rdtype)).owned

    def _refused(self, swap: Swap, e: Rejected, now: Owned) -> RelightError:
        """Where what was expected is still there, it is not the compare that Route 53 refused."""
        if _same(now, swap.old):
            return Rejected(f"{self.label} changed nothing: {e}", code=e.facts["code"])
        return swap.lost(now, str(e.facts["code"]))


def _epoch(name: str, epochs: list[dict[str, Any]]) -> int | None:
    if not epochs:
        return None
    values = [r["Value"] for e in epochs for r in e.get("ResourceRecords", ())]
    return records.epoch_of(records.epoch_name(name), values)


def _created(swap: Swap) -> list[dict[str, Any]]:
    new = swap.new
    try:
        batch = routing.batch((new.name, new.rdtype), None, (new.ttl, new.values))
    except ValueError as e:
        raise BadInput(f"{swap.component}: {e}") from e
    mark = {
        "Name": records.epoch_name(new.name),
        "Type": "TXT",
        "TTL": new.ttl,
        "ResourceRecords": [{"Value": records.epoch_text(swap.epoch)}],
    }
    return [*batch["Changes"], {"Action": "CREATE", "ResourceRecordSet": mark}]


def _refuse_what_cannot_return(label: str, before: Found) -> None:
    for raw in before.raw:
        other = routing.member_of(raw).other
        if other:
            raise Rejected(
                f"{label}: {raw['Name']} {raw['Type']} has {other}, which relight does not know how to put back; point"
                " that name by hand, or make its record sets plain, weighted or failover"
            )


def _need_within_limits(swap: Swap, changes: list[dict[str, Any]]) -> None:
    values = [r["Value"] for c in changes for r in c["ResourceRecordSet"].get("ResourceRecords", ())]
    characters = sum(map(len, values))
    if len(values) > MOST_RECORDS or characters > MOST_CHARACTERS:
        raise BadInput(
            f"{swap.label}: changing {swap.new.name} {swap.new.rdtype} takes {len(values)} records with {characters}"
            f" characters in one batch; Route 53 takes {MOST_RECORDS} and {MOST_CHARACTERS}. Give it fewer records."
        )


def _same(one: Owned, other: Owned) -> bool:
    """Values and epoch; as everywhere, a TTL alone is no difference (RFC 2136 section 2.4.2 ignores it)."""
    values = [o.rrset.values if o.rrset else None for o in (one, other)]
    return values[0] == values[1] and one.epoch == other.epoch
