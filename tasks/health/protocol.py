"""What a provider of vantage points can say: agents that look at the database from elsewhere."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from tasks.database.protocol import NodeView


@runtime_checkable
class Agents(Protocol):
    """Processes in other places that probe the database's nodes on their own and tell what they see."""

    def places(self) -> tuple[str, ...]:
        """Where there is an agent: site names, or others."""
        ...

    async def look(self, place: str) -> tuple[NodeView, ...]:
        """How the nodes look from ``place`` now; ``site`` of each is empty, an agent knows names only.

        Raises Unreachable when the agent does not answer, Rejected when its answer is of no use.
        """
        ...
