"""Where a distribution's configuration says what is fetched from which origin, read and changed in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import BadInput


@dataclass(frozen=True)
class Pointers:
    """``group``: the origin group whose first member counts; None: the cache behaviours. ``mine``: origins of sites."""

    label: str
    group: str | None
    mine: frozenset[str]

    def origins(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Path pattern -> origin, of those that point to some site's; with a group, its first member."""
        if self.group is not None:
            return {f"group {self.group}": self._members(config)[0]["OriginId"]}
        found = {p: b["TargetOriginId"] for p, b in _behaviours(config) if b["TargetOriginId"] in self.mine}
        if not found:
            raise BadInput(
                f"{self.label}: no cache behaviour points to {', '.join(sorted(self.mine))}; it has"
                f" {', '.join(b['TargetOriginId'] for _, b in _behaviours(config))}"
            )
        return found

    def point(self, config: dict[str, Any], to: str) -> None:
        """Raises BadInput for an origin that is not there."""
        if self.group is not None:
            members = self._members(config)
            first = [m for m in members if m["OriginId"] == to]
            if not first:
                raise BadInput(f"{self.label}: origin group {self.group} has no member {to}")
            members[:] = first + [m for m in members if m["OriginId"] != to]
            return
        known = {
            o["Id"] for o in [*config["Origins"]["Items"], *((config.get("OriginGroups") or {}).get("Items") or [])]
        }
        if to not in known:
            raise BadInput(f"{self.label} has no origin {to}; it has {', '.join(sorted(known))}")
        for _, behaviour in _behaviours(config):
            if behaviour["TargetOriginId"] in self.mine:
                behaviour["TargetOriginId"] = to

    def _members(self, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        for group in (config.get("OriginGroups") or {}).get("Items") or []:
            if group["Id"] == self.group:
                items: list[dict[str, Any]] = group["Members"]["Items"]
                return items
        raise BadInput(f"{self.label} has no origin group {self.group}")


def _behaviours(config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    more = (config.get("CacheBehaviors") or {}).get("Items") or []
    return [("*", config["DefaultCacheBehavior"]), *((b["PathPattern"], b) for b in more)]
