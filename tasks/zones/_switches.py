"""What every switchboard has: a switch a site, as the system file says it, and names that follow them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import BadInput
from tasks.variables import expand


class Switch(BaseModel):
    """A site's switch. ``reaches``: addresses or names that clients are led to while it is on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reaches: tuple[str, ...] = Field(min_length=1)


S = TypeVar("S", bound=Switch)


class Switches(Generic[S]):
    """The part of ``tasks.zones.protocol.Switchboard`` that asks nobody."""

    def __init__(self, component: str, names: tuple[str, ...], switches: Mapping[str, S]) -> None:
        self._component, self._names, self._switches = component, names, switches

    def sites(self) -> tuple[str, ...]:
        return tuple(self._switches)

    def names(self) -> tuple[str, ...]:
        return self._names

    def reached_at(self, site: str) -> tuple[str, ...]:
        return tuple(expand(a) for a in self.switch(site).reaches)

    def switch(self, site: str) -> S:
        """Raises BadInput for a site without one."""
        try:
            return self._switches[site]
        except KeyError:
            known = ", ".join(self.sites())
            raise BadInput(f"{self._component} has no switch for site {site!r}; it has {known}") from None

    def must_leave_one(self, new: Mapping[str, bool]) -> None:
        """Raises BadInput where ``new`` has every site off."""
        if not any(new.values()):
            raise BadInput(f"{self._component}: refusing to turn every site off")
