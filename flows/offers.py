"""What relight offers in Prefect: each flow says so itself, in ``OFFERED`` beside it; here that becomes deployments.

A flow that is offered is asynchronous and takes one parameter, ``options``, a pydantic model: the UI makes its form of
it. A model with a field ``system`` gets a schedule for each system, where the offer has a ``cron``.
"""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

import flows
from flows.engine import places
from tasks.errors import BadInput

TAG = "relight"
OURS = ("cli", "warm", "serve", "server", "offers")
"""Modules of ``flows`` that are no procedures."""


@dataclass(frozen=True)
class Offer:
    """One deployment of a flow.

    Attributes:
        options: the model of its one parameter.
        name: of the deployment; default the flow's.
        defaults: fields of ``options`` that this deployment presets.
        cron: five fields; a schedule for each system.
        summary: Markdown for the UI; default the flow's docstring.
        tags: beside ``relight``.
    """

    flow: Flow[..., Any]
    options: type[BaseModel]
    name: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    cron: str = ""
    summary: str = ""
    tags: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return self.name or self.flow.name

    @property
    def key(self) -> str:
        """``flow/deployment``, as Prefect names it."""
        return f"{self.flow.name}/{self.title}"

    @property
    def entrypoint(self) -> str:
        """By module: a file's path would be another one on another machine."""
        return f"{self.flow.fn.__module__}.{self.flow.fn.__name__}"

    def parameters(self, system: str | None) -> dict[str, Any]:
        """All options, so that the form shows what will be done."""
        preset = dict(self.defaults)
        if system is not None and "system" in self.options.model_fields:
            preset["system"] = system
        return {"options": self.options(**preset).model_dump(mode="json")}


@dataclass(frozen=True)
class Wanted:
    """A deployment as it ought to be. ``schedules``: slug -> (cron, parameters, active when it is new)."""

    flow: str
    name: str
    entrypoint: str
    description: str
    tags: tuple[str, ...]
    parameters: dict[str, Any]
    parameter_schema: dict[str, Any]
    version: str
    schedules: dict[str, tuple[str, dict[str, Any], bool]]

    @property
    def key(self) -> str:
        return f"{self.flow}/{self.name}"


@dataclass(frozen=True)
class ForSystem:
    """A system that schedules are made for: what people call it, what a runner finds it by."""

    slug: str
    name: str
    active: bool = True


def offered() -> tuple[Offer, ...]:
    """Every offer of every flow, by name. Raises BadInput where two have one name, or a flow is not as it must be."""
    found: dict[str, Offer] = {}
    for module in pkgutil.iter_modules(flows.__path__):
        if module.ispkg or module.name.startswith(OURS):
            continue
        for offer in getattr(importlib.import_module(f"flows.{module.name}"), "OFFERED", ()):
            _check(offer, found)
            found[offer.key] = offer
    return tuple(found[key] for key in sorted(found))


def _check(offer: Offer, others: Mapping[str, Offer]) -> None:
    if offer.key in others:
        raise BadInput(f"two flows offer {offer.key}; give one of them another name")
    if not offer.flow.isasync or list(offer.flow.parameters.properties) != ["options"]:
        raise BadInput(f"flow {offer.flow.name} is offered, so it must be `async def` with one parameter, `options`")


def wanted(offer: Offer, systems: tuple[ForSystem, ...]) -> Wanted:
    """The deployment of an offer; the first of ``systems`` is what its form begins with."""
    schema = parameter_schema(offer.flow).model_dump(mode="json", exclude_unset=True)
    schedules = {}
    if offer.cron:
        for one in systems if "system" in offer.options.model_fields else (ForSystem("all", ""),):
            schedules[one.slug] = (offer.cron, offer.parameters(one.name or None), one.active)
    return Wanted(
        flow=offer.flow.name,
        name=offer.title,
        entrypoint=offer.entrypoint,
        description=offer.summary or inspect.cleandoc(offer.flow.fn.__doc__ or ""),
        tags=(TAG, *offer.tags),
        parameters=offer.parameters(systems[0].name if systems else None),
        parameter_schema=schema,
        version=version("relight"),
        schedules=schedules,
    )


def systems_for(names: tuple[str, ...]) -> tuple[ForSystem, ...]:
    """The systems that are named, else those of ``./runbooks``, else the shipped ones, whose schedules begin paused.

    Raises BadInput for a system that is not there.
    """
    if names:
        return tuple(_for_system(name) for name in names)
    own = Path.cwd() / "runbooks"
    shipped = places.data("runbooks")
    found = _below(own) if own.is_dir() and own.resolve() != shipped.resolve() else ()
    return tuple(ForSystem(n, n) for n in found) or tuple(ForSystem(n, n, active=False) for n in _below(shipped))


def _below(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.parent.name for p in folder.glob("*/system.yaml")))


def _for_system(name: str) -> ForSystem:
    folder = places.system_folder(name)
    # a path is another one seen from another folder
    return ForSystem(folder.name, name if "/" not in name and not Path(name).exists() else str(folder.resolve()))


def prefect_yaml() -> str:
    """``deployments/prefect.yaml``: the same deployments for ``prefect deploy --all``, in a work pool."""
    lab = (ForSystem("lab", "lab", active=False),)
    listed = []
    for offer in offered():
        want = wanted(offer, lab)
        entry: dict[str, Any] = {
            "name": want.name,
            "flow_name": want.flow,
            "entrypoint": want.entrypoint,
            "description": LiteralScalarString(want.description + "\n"),
            "version": want.version,
            "tags": list(want.tags),
            "parameters": want.parameters,
            "work_pool": {"name": "{{ $RELIGHT_WORK_POOL }}"},
        }
        if want.schedules:
            entry["schedules"] = [
                {"slug": slug, "cron": cron, "timezone": "UTC", "active": active, "parameters": parameters}
                for slug, (cron, parameters, active) in want.schedules.items()
            ]
        listed.append(entry)
    return _HEAD + _yaml({"prefect-version": "3.8.8", "name": "relight", "deployments": listed})


_HEAD = """\
# relight's deployments for `prefect deploy --all`. Written from the flows (`python -m flows.offers`); do not edit.
# For a work pool whose workers have relight installed: RELIGHT_WORK_POOL=name prefect deploy --all --prefect-file ...
# Without workers, `relight serve` registers the same and runs them; `relight deploy` only registers.
"""


def _yaml(document: Any) -> str:
    text, yaml = io.StringIO(), YAML()
    yaml.default_flow_style = False
    yaml.width = 118
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(document, text)
    return text.getvalue()


def schedule_of(cron: str, timezone: str | None) -> CronSchedule:
    """Prefect's form. Raises BadInput for what is no cron or no time zone."""
    try:
        return CronSchedule(cron=cron, timezone=timezone or "UTC")
    except ValueError as e:
        raise BadInput(f"schedule {cron!r} in time zone {timezone or 'UTC'!r}: {e}") from e


if __name__ == "__main__":
    (places.data("deployments") / "prefect.yaml").write_text(prefect_yaml(), encoding="utf-8")
