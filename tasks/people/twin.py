"""Simulated twin of the directory: the same people, each with a secret that the simulation knows."""

from __future__ import annotations

from pydantic import SecretStr

from tasks.contract import Surroundings
from tasks.errors import BadInput
from tasks.people.protocol import Approver, Directory, Subscription
from tasks.simulation import Simulation
from tasks.world import World


def secret_of(name: str) -> SecretStr:
    """What ``name`` signs with in a simulation."""
    return SecretStr(f"simulated secret of {name}")


class DirectoryTwin:
    """Fulfils ``Directory``. Nobody is told anything."""

    def __init__(self, real: Directory, around: Surroundings, world: World, simulation: Simulation) -> None:
        self._real = real

    async def aclose(self) -> None:
        """Nothing is held open."""

    def approvers(self) -> tuple[Approver, ...]:
        return self._real.approvers()

    def vouches_for_ui(self) -> bool:
        return self._real.vouches_for_ui()

    async def secret(self, name: str) -> SecretStr:
        if name not in {a.name for a in self._real.approvers()}:
            raise BadInput(f"{name!r} is no approver")
        return secret_of(name)

    def subscriptions(self) -> tuple[Subscription, ...]:
        return ()


TWINS = ((Directory, DirectoryTwin),)
