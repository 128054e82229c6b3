"""How the nodes stand to each other: who is the one primary, who came after, what may be given up."""

from __future__ import annotations

import asyncio

from tasks.database._reading import Reading
from tasks.database.protocol import NodeView
from tasks.errors import Contradiction, Rejected, Unreachable


class Standing(Reading):
    """Checks that come before a change; they only read."""

    async def _no_successor(self, node: str) -> NodeView:
        """The node as it looks now. Raises Rejected when any other one is a primary, or on a newer timeline."""
        names = self.nodes()
        views = dict(zip(names, await asyncio.gather(*(self.view(n) for n in names)), strict=True))
        mine = views[node]
        for name, view in views.items():
            if name == node or view.reach != "answers":
                continue
            newer = None not in (view.timeline, mine.timeline) and (view.timeline or 0) > (mine.timeline or 0)
            if view.in_recovery is False or newer:
                what = "is a primary" if view.in_recovery is False else f"is on the newer timeline {view.timeline}"
                raise Rejected(f"{node} stays fenced: {name} {what}. Bring {node} back with database.rejoin.")
        return mine

    async def _one_primary(self, upstream: str, but: str) -> NodeView:
        """View of ``upstream``. Raises Contradiction unless it is the one primary that takes writes, ``but`` aside, and
        Unreachable where it gives no answer, which says nothing of it.
        """
        names = [n for n in self.nodes() if n != but]
        views = dict(zip(names, await asyncio.gather(*(self.view(n) for n in names)), strict=True))
        seen = views[upstream]
        if seen.reach == "silent":
            raise Unreachable(f"{upstream} does not answer: {seen.why}. Nothing was changed on {but}.")
        if seen.reach != "answers" or seen.in_recovery is not False or seen.read_only:
            what = seen.why or ("it is a replica" if seen.in_recovery else "it is read only")
            raise Contradiction(f"{upstream} is no primary that takes writes: {what}. Nothing was changed on {but}.")
        others = [n for n, v in views.items() if n != upstream and v.in_recovery is False and not v.read_only]
        if others:
            raise Contradiction(
                f"{', '.join(others)} and {upstream} both take writes as primaries. Nothing was changed on {but}."
                " Find out which one clients use, and fence the other."
            )
        return seen

    def _check_expendable(self, node: NodeView, source: NodeView) -> None:
        """Raises Contradiction when what ``node`` holds must not be touched."""
        if node.system_identifier not in (None, source.system_identifier):
            raise Contradiction(
                f"{node.node} is another database than {source.node}: system identifier {node.system_identifier},"
                f" expected {source.system_identifier}. Nothing was changed."
            )
        if node.in_recovery is False and not node.read_only:
            raise Contradiction(f"{node.node} takes writes as a primary itself; fence it first (database.fence)")
        if (node.timeline or 0) > (source.timeline or 0):
            raise Contradiction(
                f"{node.node} is on timeline {node.timeline}, newer than {source.timeline} of {source.node}: it may"
                " hold commits that the primary lacks. Decide by hand which one is right."
            )
