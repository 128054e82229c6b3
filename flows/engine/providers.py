"""Builds the providers of a system, each once, when first asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.engine.system import LoadedSystem
from tasks import catalog
from tasks.clock import Clock
from tasks.contract import Surroundings
from tasks.errors import BadInput

_SPEAKS: dict[tuple[type[Any], type[Any]], bool] = {}


def speaks(provider: Any, protocol: type[Any]) -> bool:
    """Whether the provider's class has what ``protocol`` asks for: asked often, and typing looks at every member."""
    key = (type(provider), protocol)
    if key not in _SPEAKS:
        _SPEAKS[key] = isinstance(provider, protocol)
    return _SPEAKS[key]


class Components:
    """Component name -> provider instance. Call it with a name; ``aclose`` when done."""

    def __init__(self, loaded: LoadedSystem, clock: Clock) -> None:
        self._loaded, self._clock = loaded, clock
        self._built: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        """Raises BadInput for a component that the system does not have."""
        if name not in self._built:
            system = self._loaded.system
            if name not in system.components:
                known = ", ".join(system.components)
                raise BadInput(f"system {system.system} has no component {name!r}; it has {known}")
            around = Surroundings(
                system=system.system,
                component=name,
                sites=tuple(system.sites),
                clock=self._clock,
                components=self,
                folder=Path(self._loaded.document.file).resolve().parent,
            )
            cls = catalog.provider(system.components[name].provider)
            self._built[name] = cls(self._loaded.settings[name], around)
        return self._built[name]

    def build(self) -> None:
        """Build every component now."""
        for name in self._loaded.system.components:
            self(name)

    def of(self, protocol: type[Any]) -> list[tuple[str, Any]]:
        """Every component whose provider speaks ``protocol``, in the order of the file."""
        pairs = [(name, self(name)) for name in self._loaded.system.components]
        return [(name, provider) for name, provider in pairs if speaks(provider, protocol)]

    async def aclose(self) -> None:
        """Close every provider that was built."""
        for provider in self._built.values():
            await provider.aclose()
        self._built.clear()
