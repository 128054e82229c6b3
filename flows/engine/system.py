"""The system file: what is recovered, where it can run, and what was promised about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.engine import conditions, yamlfile
from flows.engine.findings import Finding, InvalidFiles, nearest
from flows.engine.maintenance import Maintenance
from flows.engine.safety import Safety
from flows.engine.thresholds import DatabaseSizing, Monitoring, Scaling, Strict
from flows.engine.yamlfile import Document
from tasks import catalog
from tasks.capacity._plan import AutoScaling
from tasks.contract import ComponentParam
from tasks.quantities import Duration

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
ROLES = ("active", "failed", "target")


class Site(Strict):
    """A place the system can run in. ``region``: where it is; two sites of one region may fail together."""

    summary: str = ""
    region: str = ""


class Objective(Strict):
    """Seconds from the start of the incident (rto) and of data (rpo) that may be lost."""

    rto: Duration | None = None
    rpo: Duration | None = None


class Component(BaseModel):
    """A part of the system and the provider that talks to it; every further key is a setting of that provider."""

    model_config = ConfigDict(frozen=True, extra="allow")

    provider: str

    @property
    def settings(self) -> dict[str, Any]:
        """The provider's settings as written."""
        return dict(self.model_extra or {})

    @property
    def domain(self) -> str:
        return self.provider.partition(".")[0]


class System(Strict):
    """A system file, whole."""

    system: Name
    summary: str = ""
    sites: dict[Name, Site] = Field(min_length=1)
    objectives: dict[Name, Objective] = Field(default_factory=dict)
    components: dict[Name, Component] = Field(default_factory=dict)
    safety: Safety = Safety()
    maintenance: Maintenance = Maintenance()
    scaling: Scaling | None = None
    auto_scaling: AutoScaling | None = None
    database: DatabaseSizing | None = None
    monitoring: Monitoring | None = None
    database_monitoring: Monitoring | None = None
    cost_monitoring: Monitoring | None = None


@dataclass(frozen=True)
class LoadedSystem:
    """A checked system file: the model, the document it came from, and each component's typed settings."""

    system: System
    document: Document
    settings: Mapping[str, BaseModel]


def load(path: Path) -> LoadedSystem:
    """Read and check a system file. Raises InvalidFiles with every fault found."""
    return check(yamlfile.read(path))


def check(document: Document) -> LoadedSystem:
    """As ``load``, from a parsed document."""
    system = yamlfile.validated(document, System)
    findings: list[Finding] = []
    settings: dict[str, BaseModel] = {}
    findings.extend(
        document.finding("reserved-name", f"a site cannot be called {role!r}: it is a role", ("sites", role))
        for role in ROLES
        if role in system.sites
    )
    for name, component in system.components.items():
        try:
            settings[name] = _settings(document, name, component)
        except InvalidFiles as e:
            findings.extend(e.findings)
        findings.extend(_sites_named(document, system, component.settings, ("components", name)))
    leases = [name for name, component in system.components.items() if component.domain == "leases"]
    findings.extend(
        document.finding(
            "two-leases", f"the lease is kept by {leases[0]!r} already", ("components", name), expected="one lease"
        )
        for name in leases[1:]
    )
    for name, setting in settings.items():
        findings.extend(_references(document, system, name, setting))
    findings.extend(conditions.faults(document, system))
    if findings:
        raise InvalidFiles(findings)
    return LoadedSystem(system, document, settings)


def _settings(document: Document, name: str, component: Component) -> BaseModel:
    where = ("components", name)
    try:
        cls = catalog.provider(component.provider)
    except KeyError:
        known = catalog.provider_names()
        raise InvalidFiles(
            [
                document.finding(
                    "unknown-provider",
                    f"unknown provider {component.provider!r}",
                    (*where, "provider"),
                    expected="one of " + ", ".join(known),
                    nearest=nearest(component.provider, known),
                )
            ]
        ) from None
    try:
        return cls.Settings.model_validate(component.settings)
    except ValidationError as e:
        raise InvalidFiles(yamlfile.model_findings(document, e, cls.Settings, where)) from e


def _sites_named(document: Document, system: System, data: Any, where: yamlfile.Where) -> list[Finding]:
    """Wherever settings speak of sites (keys below ``sites`` and ``from``, values of ``site``) they must exist."""
    named: list[tuple[str, yamlfile.Where]] = []
    findings: list[Finding] = []
    if isinstance(data, dict):
        for key, value in data.items():
            at = (*where, key)
            if key in ("sites", "from") and isinstance(value, dict):
                named.extend((k, (*at, k)) for k in value)
            elif key == "site" and isinstance(value, str):
                named.append((value, at))
            findings.extend(_sites_named(document, system, value, at))
    findings.extend(
        document.finding(
            "unknown-site",
            f"unknown site {site!r}",
            at,
            expected="one of " + ", ".join(system.sites),
            nearest=nearest(site, system.sites),
        )
        for site, at in named
        if site not in system.sites
    )
    return findings


def _references(document: Document, system: System, name: str, settings: BaseModel) -> list[Finding]:
    """Settings marked ComponentParam name another component of the right domain."""
    findings = []
    for field_name, info in type(settings).model_fields.items():
        value = getattr(settings, field_name)
        for mark in info.metadata:
            if isinstance(mark, ComponentParam) and value is not None:
                where = ("components", name, info.alias or field_name)
                findings.extend(component_findings(document, system, str(value), mark.domain, where))
    return findings


def component_findings(
    document: Document, system: System, value: str, domain: str, where: yamlfile.Where
) -> list[Finding]:
    """Faults of a reference to a component that must be of ``domain``."""
    fitting = [n for n, c in system.components.items() if c.domain == domain]
    if value in fitting:
        return []
    if value in system.components:
        message = f"component {value!r} is provided by {system.components[value].provider}, not by a {domain} provider"
    else:
        message = f"no component {value!r} in system {system.system}"
    expected = f"a {domain} component" + (f": {', '.join(fitting)}" if fitting else "; this system has none")
    return [document.finding("unknown-component", message, where, expected=expected, nearest=nearest(value, fitting))]
