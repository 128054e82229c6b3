"""A name by hand: nsupdate (RFC 2136) or the AWS CLI, then dig."""

from __future__ import annotations

import shlex
from typing import Any, Protocol, runtime_checkable

from tasks.contract import Context
from tasks.manual import Command, Manual, NoManual, none
from tasks.zones.protocol import RRset, Zone

Answer = list[Command | NoManual]


@runtime_checkable
class ByHand(Protocol):
    """A zone that a command changes."""

    def change_line(self, old: RRset | None, new: RRset) -> str:
        """The command line that replaces exactly ``old`` by ``new``."""
        ...


async def point(action: Any, ctx: Context) -> Answer:
    """Replace the record set, only where it is still what it was when this was written."""
    zone: Zone = ctx.component(action.component, Zone)
    if not isinstance(zone, ByHand):
        return [none(action, zone)]
    wanted = zone.wanted(action.record, action.rdtype, ctx.site(action.site))
    old = (await zone.read(action.record, action.rdtype)).rrset
    if old == wanted:
        return [NoManual(f"{action.record} is there already")]
    why = f"{action.record} points at {ctx.site(action.site)}; refused where it is not what it was at the export."
    return [Command(zone.change_line(old, wanted), "(nothing; exit status 0)", why)]


async def verify(action: Any, ctx: Context) -> Answer:
    """Ask every server and resolver."""
    zone: Zone = ctx.component(action.component, Zone)
    wanted = zone.wanted(action.record, action.rdtype, ctx.site(action.site))
    expected = " ".join(wanted.targets)
    found: Answer = []
    for server in (*zone.servers(), *zone.resolvers()):
        host, _, port = server.rpartition(":")
        line = shlex.join(
            ["dig", "+short", "+time=2", f"@{host.strip('[]')}", "-p", port, action.record, action.rdtype]
        )
        late = "" if server in zone.servers() else " (a resolver may keep the old answer until the old TTL has run out)"
        found.append(Command(line, expected, f"{server}{late}"))
    return found


MANUAL: dict[str, Manual] = {"zones.point": point, "zones.verify": verify}
