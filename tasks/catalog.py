"""Finds actions and providers by their dotted name, without a list that everyone must edit.

``database.promote`` is the class marked ``@action("database.promote")`` in ``tasks/database/actions.py``;
provider ``database.postgresql`` is the class ``PROVIDER`` of ``tasks/database/postgresql.py``. Modules named
``actions`` are light (no drivers); a provider's module is imported only when a system uses it. Others add
theirs through the entry-point groups ``relight.actions`` (an Action class) and ``relight.providers``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel

import tasks
from tasks.contract import Action, Surroundings
from tasks.manual import Manual
from tasks.readiness import Check

A = TypeVar("A", bound=type[Action])

_NOT_PROVIDERS = {"actions", "manual", "protocol", "readiness", "twin"}


@runtime_checkable
class Provider(Protocol):
    """What the catalog asks of a provider class: typed settings, and nothing held open past ``aclose``."""

    Settings: ClassVar[type[BaseModel]]

    def __init__(self, settings: Any, around: Surroundings) -> None: ...

    async def aclose(self) -> None: ...


def action(name: str) -> Callable[[A], A]:
    """Class decorator: gives an action its ``domain.verb`` name."""

    def mark(cls: A) -> A:
        cls.name = name
        return cls

    return mark


@cache
def actions() -> dict[str, type[Action]]:
    """Every action by name. Imports the light ``actions`` modules only."""
    found: dict[str, type[Action]] = {}
    for domain in domains():
        if "actions" not in _modules(domain):
            continue
        module = importlib.import_module(f"tasks.{domain}.actions")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Action) and value.name.startswith(f"{domain}."):
                found[value.name] = value
    for entry in entry_points(group="relight.actions"):
        cls = entry.load()
        cls.name = entry.name
        found[entry.name] = cls
    return dict(sorted(found.items()))


@cache
def domains() -> tuple[str, ...]:
    """The domain folders of ``tasks``, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(tasks.__path__) if m.ispkg))


@cache
def provider_names() -> tuple[str, ...]:
    """Every provider as ``domain.name``, without importing any. Modules that start with ``_`` are not providers."""
    own = [
        f"{domain}.{name}"
        for domain in domains()
        for name in _modules(domain)
        if name not in _NOT_PROVIDERS and not name.startswith("_")
    ]
    return tuple(sorted({*own, *(e.name for e in entry_points(group="relight.providers"))}))


@cache
def provider(name: str) -> type[Provider]:
    """The provider class ``domain.name``. Raises KeyError for a name that ``provider_names`` does not list."""
    for entry in entry_points(group="relight.providers"):
        if entry.name == name:
            loaded: type[Provider] = entry.load()
            return loaded
    if name not in provider_names():
        raise KeyError(name)
    found: type[Provider] = importlib.import_module(f"tasks.{name}").PROVIDER
    return found


def checks() -> tuple[Check, ...]:
    """Every check of readiness: ``CHECKS`` of each domain's module ``readiness``, domain by domain."""
    with_checks = (d for d in domains() if "readiness" in _modules(d))
    return tuple(c for d in with_checks for c in importlib.import_module(f"tasks.{d}.readiness").CHECKS)


@cache
def manuals() -> dict[str, Manual]:
    """Action -> what gives its commands for people: ``MANUAL`` of each domain's module ``manual``."""
    found: dict[str, Manual] = {}
    for domain in domains():
        if "manual" in _modules(domain):
            found |= importlib.import_module(f"tasks.{domain}.manual").MANUAL
    return found


def twins(domain: str) -> tuple[tuple[type[Any], type[Any]], ...]:
    """(Protocol, simulated twin) pairs of ``domain``; empty where it has none."""
    if "twin" not in _modules(domain):
        return ()
    found: tuple[tuple[type[Any], type[Any]], ...] = importlib.import_module(f"tasks.{domain}.twin").TWINS
    return found


@cache
def _modules(domain: str) -> tuple[str, ...]:
    package = importlib.import_module(f"tasks.{domain}")
    return tuple(m.name for m in pkgutil.iter_modules(package.__path__))
