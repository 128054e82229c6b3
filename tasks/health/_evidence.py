"""One look at a site's primary from every vantage point at once, and what it amounts to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tasks.clock import Clock
from tasks.contract import Facts
from tasks.database._assess import Assessment, assess_primary
from tasks.database.protocol import Database, NodeView
from tasks.errors import Contradiction, Rejected, Unreachable
from tasks.health.protocol import Agents


@dataclass(frozen=True)
class Round:
    """Evidence of one moment. ``views``: vantage -> the primary as seen from there; ``absent``: agent -> why."""

    at: str
    primary: str
    views: Mapping[str, NodeView]
    replicas: tuple[NodeView, ...]
    absent: Mapping[str, str]
    assessment: Assessment

    @property
    def failing(self) -> int:
        """Vantage points from which the primary does not answer."""
        return sum(v.reach != "answers" for v in self.views.values())

    def facts(self) -> Facts:
        return {
            "at": self.at,
            "primary": self.primary,
            "state": self.assessment.state,
            "reasons": list(self.assessment.reasons),
            "vantages": {name: _plain(v) for name, v in self.views.items()},
            "replicas": {v.node: _plain(v) for v in self.replicas},
            "silent_agents": dict(self.absent),
        }

    def table(self) -> str:
        """All evidence in one readable line, a clause a witness."""
        seen = [f"from {name}: {_words(v)}" for name, v in self.views.items()]
        seen += [f"agent of {name}: silent ({why})" for name, why in self.absent.items()]
        seen += [f"replica {v.node}: {_replica_words(v, self.primary)}" for v in self.replicas]
        return "; ".join(seen)


async def look(database: Database, agents: Agents | None, site: str, clock: Clock) -> Round:
    """Every probe at the same time, so that a round lasts as long as its slowest probe and no longer.

    Raises Contradiction when nothing tells which node of ``site`` is (or was) its primary.
    """
    at = clock.utc().isoformat(timespec="milliseconds")
    here = database.nodes(site)
    places = agents.places() if agents else ()
    # Without configured vantage points the engine itself is the only one: vantage None.
    vantages: tuple[str | None, ...] = database.vantages() or (None,)
    own, probed, told = await asyncio.gather(
        asyncio.gather(*(database.view(node) for node in database.nodes())),
        asyncio.gather(*(database.view(node, v) for v in vantages for node in here)),
        asyncio.gather(*(_told(agents, place) for place in places if agents)),
    )
    absent = {place: t for place, t in zip(places, told, strict=True) if isinstance(t, str)}
    agent_views = {
        place: {v.node: replace(v, site=database.site_of(v.node)) for v in t if v.node in database.nodes()}
        for place, t in zip(places, told, strict=True)
        if not isinstance(t, str)
    }
    everything = [*own, *probed, *(v for seen in agent_views.values() for v in seen.values())]
    primary = suspect(site, here, everything)
    pairs = [(v, node) for v in vantages for node in here]
    views = {v or "the engine": view for (v, node), view in zip(pairs, probed, strict=True) if node == primary}
    views |= {f"agent:{place}": seen[primary] for place, seen in agent_views.items() if primary in seen}
    replicas = tuple(v for v in own if v.node != primary)
    return Round(at, primary, views, replicas, absent, assess_primary(primary, views, replicas))


def suspect(site: str, here: Sequence[str], views: Iterable[NodeView]) -> str:
    """The node of ``site`` that is or was its primary, even when it does not answer.

    One that says so; else the one that replicas follow; else the only one that is no replica. Raises Contradiction.
    """
    seen = list(views)
    claims = sorted({v.node for v in seen if v.node in here and v.in_recovery is False})
    if len(claims) > 1:
        raise Contradiction(
            f"{' and '.join(claims)} of {site} both claim to be primary. Stop one of them by hand first."
        )
    if claims:
        return claims[0]
    replicas = {v.node for v in seen if v.in_recovery}
    candidates = [node for node in here if node not in replicas]
    followed = sorted({v.upstream for v in seen if v.in_recovery and v.upstream in candidates and v.upstream})
    if len(followed) == 1:
        return followed[0]
    if len(candidates) == 1 and not followed:
        return candidates[0]
    if not candidates:
        raise Contradiction(
            f"no node of {site} is a primary: {', '.join(here) or 'it has none'}{' are replicas' if here else ''}. "
            "This is not the failed site; name the right one."
        )
    raise Contradiction(
        f"nothing tells which of {', '.join(candidates)} was the primary of {site}: none answers, "
        f"replicas follow {' and '.join(followed) or 'none of them'}. Start a replica, or decide by hand.",
        candidates=candidates,
        followed=followed,
    )


async def _told(agents: Agents | None, place: str) -> tuple[NodeView, ...] | str:
    """What an agent sees, or in words why it says nothing; its silence proves nothing about the database."""
    if agents is None:
        return ()
    try:
        return await agents.look(place)
    except (Unreachable, Rejected) as e:
        return e.message


def _plain(view: NodeView) -> Facts:
    known = {
        "reach": view.reach,
        "why": view.why or None,
        "in_recovery": view.in_recovery,
        "read_only": view.read_only,
        "timeline": view.timeline,
        "lsn": view.lsn,
        "upstream": view.upstream,
        "streaming": view.streaming,
        "heard_age_s": view.heard_age_s,
    }
    return {k: v for k, v in known.items() if v is not None}


def _words(view: NodeView) -> str:
    if view.reach != "answers":
        return f"{view.reach}{f' ({view.why})' if view.why else ''}"
    if view.in_recovery is None:
        return f"answers, role unknown{f' ({view.why})' if view.why else ''}"
    return (
        "answers as a replica" if view.in_recovery else f"answers as primary{', read-only' if view.read_only else ''}"
    )


def _replica_words(view: NodeView, primary: str) -> str:
    if view.reach != "answers" or not view.in_recovery:
        return _words(view)
    link = "streams from" if view.streaming else "is cut off from" if view.streaming is False else "follows"
    heard = "" if view.heard_age_s is None else f", heard from it {view.heard_age_s:.1f} s ago"
    return f"{link} {view.upstream or primary}{heard}"
