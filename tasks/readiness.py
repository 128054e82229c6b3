"""What a check of readiness is: "would it work now?" for one part of a system, asked without changing anything.

A domain's checks are the functions of ``CHECKS`` in its module ``readiness`` (``tasks.catalog.checks`` finds them);
each is called with every component, says nothing of what it does not know, and is written over Protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from tasks.clock import Clock
from tasks.errors import BadInput
from tasks.network import Network
from tasks.variables import expand

Level = Literal["ok", "warning", "failing", "unknown"]
"""``failing``: it would not work. ``unknown``: nothing here can tell, which is not the same as ok."""


@dataclass(frozen=True)
class Finding:
    """One answer. ``component`` and ``site`` are empty where it is about the engine itself."""

    check: str
    level: Level
    says: str
    fix: str = ""
    """What a person does about it, in one line."""
    component: str = ""
    site: str = ""
    version: str = ""
    """What runs there, where the check learned it: a drill proves nothing about another version."""


@dataclass(frozen=True)
class Asked:
    """What is asked: would a move from ``active`` to ``target`` work now?

    ``rto_s``, ``rpo_s``: objective -> seconds.
    """

    active: str
    target: str
    clock: Clock
    network: Network
    rto_s: Mapping[str, float] = field(default_factory=dict)
    rpo_s: Mapping[str, float] = field(default_factory=dict)
    within_s: float = 5.0
    """Of each single question that has no time-out of its own."""


@dataclass(frozen=True)
class Part:
    """One component: its name, its provider, its settings as loaded."""

    name: str
    provider: Any
    settings: BaseModel

    def found(self, check: str, level: Level, says: str, fix: str = "", site: str = "") -> Finding:
        """A finding about this component."""
        return Finding(check, level, says, fix, self.name, site)


Check = Callable[[Asked, Part], Coroutine[Any, Any, list[Finding]]]
"""May raise a RelightError: then its answer is *unknown*, with that reason."""


def texts(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys on the way, text) of every text in settings, variables expanded, references to secrets as they stand."""
    if isinstance(value, BaseModel):
        value = {info.alias or name: getattr(value, name) for name, info in type(value).model_fields.items()}
    if isinstance(value, str):
        try:
            yield where, value if value.startswith(("file:", "env:")) else expand(value)
        except BadInput:  # a variable that is not set: whoever uses it says so
            yield where, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from texts(each, (*where, str(key)))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts(each, where)
