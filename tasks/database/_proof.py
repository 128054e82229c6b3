"""What the actions of this domain share: every node's view, who writes, and proof that one does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tasks.contract import Context, Facts
from tasks.database.protocol import Database, NodeView, Witnessed, WriteProbe
from tasks.errors import Contradiction, NotYet

Views = Mapping[str, NodeView]


async def look(database: Database) -> dict[str, NodeView]:
    """Every node as it looks now, asked at the same time."""
    names = database.nodes()
    return dict(zip(names, await asyncio.gather(*(database.view(n) for n in names)), strict=True))


def writers(views: Views) -> list[str]:
    """Nodes that answer as primaries and take writes."""
    return [n for n, v in views.items() if v.reach == "answers" and v.in_recovery is False and not v.read_only]


def the_primary(views: Views) -> NodeView:
    """The one node that takes writes. Raises NotYet when none does, Contradiction when more than one does."""
    found = writers(views)
    if not found:
        raise NotYet(f"no node takes writes as primary ({'; '.join(told(v) for v in views.values())})")
    if len(found) > 1:
        said = "; ".join(told(v) for v in views.values())
        raise Contradiction(f"expected one primary, found {', '.join(found)} ({said})", primaries=found)
    return views[found[0]]


def followed(views: Views) -> str | None:
    """The node that is, or was, the primary: one that says so, else the one that most replicas on the newest timeline
    follow and that is no replica itself. None where nothing tells.
    """
    primaries = [v for v in views.values() if v.reach == "answers" and v.in_recovery is False]
    if primaries:
        return max(primaries, key=lambda v: (not v.read_only, v.timeline or 0)).node
    replicas = [v for v in views.values() if v.reach == "answers" and v.in_recovery]
    newest = max((v.timeline or 0 for v in replicas), default=0)
    names = Counter(v.upstream for v in replicas if v.upstream in views and (v.timeline or 0) == newest)
    known = [name for name, _ in names.most_common() if name and not views[name].in_recovery]
    return known[0] if known else None


def streams(view: NodeView, primary: NodeView) -> bool:
    """``view`` is a replica that streams from ``primary`` on its timeline. A replica that has diverged streams too for
    a moment, on its old timeline: the WAL receiver asks from the start of a segment.
    """
    return bool(view.in_recovery and view.streaming) and (view.upstream, view.timeline) == (
        primary.node,
        primary.timeline,
    )


def told(view: NodeView) -> str:
    """A node in words."""
    if view.reach != "answers" or view.in_recovery is None:
        return f"{view.node} {view.reach}{': ' + view.why if view.why else ''}"
    if view.in_recovery:
        return f"{view.node} follows {view.upstream or 'nobody known'}{'' if view.streaming else ', not streaming'}"
    return f"{view.node} is a primary{', read only' if view.read_only else ''}"


def shown(views: Iterable[NodeView]) -> dict[str, Facts]:
    """Views as facts, by node, without what is not known."""
    return {v.node: {k: _plain(x) for k, x in asdict(v).items() if x is not None and x != ""} for v in views}


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


@dataclass(frozen=True)
class Proof:
    """Whether a node can take no writes, and by which witnesses."""

    node: str
    fenced: bool
    why: str
    probes: tuple[WriteProbe, ...]

    def facts(self) -> Facts:
        return {"fenced": self.fenced, "why": self.why, "probes": [asdict(p) for p in self.probes]}


async def prove(database: Database, node: str, *, host_said: bool = False) -> Proof:
    """Try to write to ``node`` from every vantage point, and ask its host at the same time: a network that was cut may
    refuse in the name of a server that lives. ``host_said``: it was asked in this run, and is again only in doubt.
    """

    async def by_host() -> WriteProbe | None:
        return await database.ask_host(node) if isinstance(database, Witnessed) else None

    async def nothing() -> None:
        return None

    tries = asyncio.gather(*(database.try_write(node, v) for v in database.vantages()))
    tried, said = await asyncio.gather(tries, nothing() if host_said else by_host())
    probes = (*tried, *([said] if said else []))
    fenced, why = judge(probes)
    if not fenced and host_said and (again := await by_host()):
        probes = (*probes, again)
        fenced, why = judge(probes)
    return Proof(node, fenced, why, probes)


def judge(probes: Iterable[WriteProbe]) -> tuple[bool, str]:
    """Pure. A write that is taken settles it. The host's word that no process runs is proof; else every path must say
    no, two different ones where there are two, since a path that refuses may itself be what is broken. Where the host
    says that the process runs, only the server's own refusals count.
    """
    probes = tuple(probes)
    by_path = {p.address or p.vantage: p for p in probes}
    accepted = [p.vantage for p in probes if p.outcome == "accepted"]
    if accepted:
        return False, f"it takes writes (seen from {', '.join(accepted)})"
    gone_by_host = next((p for p in probes if p.vantage == "host" and p.outcome == "gone"), None)
    if gone_by_host is not None:
        return True, f"{gone_by_host.detail or 'its host says that no process of it runs'}, and nobody sees it"
    paths = {a: p for a, p in by_path.items() if p.vantage != "host"}
    silent = [p.vantage for p in paths.values() if p.outcome == "silent"]
    if silent or not paths:
        return False, f"no answer from {', '.join(silent) or 'anywhere'}, which proves nothing"
    gone = [p.vantage for p in paths.values() if p.outcome == "gone"]
    if gone and any(p.outcome == "runs" for p in probes):
        return False, f"its host says that its process runs, though connections from {', '.join(gone)} are refused"
    return True, "; ".join(f"{p.vantage}: {p.outcome}" for p in paths.values())


def suspects(views: Views, nodes: Iterable[str]) -> list[str]:
    """Those of ``nodes`` that are, or may be, primaries: all but the replicas that answer as such."""
    return [n for n in nodes if not (views[n].reach == "answers" and views[n].in_recovery)]


async def proofs(ctx: Context, database: Database, nodes: Iterable[str]) -> dict[str, Proof]:
    """``prove`` for several nodes at the same time. A host that told an earlier step of this run that a node's process
    is gone is not asked again.
    """
    names = tuple(nodes)
    known = {n for f in ctx.facts_of("database.fence") for n, p in (f.get("proofs") or {}).items() if _host_gone(p)}
    if names:
        ctx.report(f"test writes to {', '.join(names)} from {', '.join(database.vantages())}")
    return {p.node: p for p in await asyncio.gather(*(prove(database, n, host_said=n in known) for n in names))}


def _host_gone(proof: Facts) -> bool:
    return any((p["vantage"], p["outcome"]) == ("host", "gone") for p in proof["probes"])
