"""Whom each step really calls: heard while it is observed, and once more with the site that is left cut off.

A step that cannot even be observed once nothing of the evacuated site answers, although it is not about that site,
needs what will be gone. And a control plane that is in one region may be gone with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from flows.engine import preview
from flows.engine.launch import Request
from flows.engine.plan import PlannedStep
from flows.engine.roles import Roles
from flows.engine.system import LoadedSystem
from tasks import reached
from tasks.contract import SiteParam
from tasks.errors import BadInput, NotYet, SafetyRefusal, Unreachable
from tasks.reached import HEARD, Call
from tasks.readiness import Finding
from tasks.variables import expand

ONE_REGION = {
    "route53": ("us-east-1", "zones.flip: a health-check flip or ARC routing controls"),
    "cloudfront": ("us-east-1", "an origin group, which fails over by itself"),
    "iam": ("us-east-1", "roles that exist beforehand"),
    "organizations": ("us-east-1", "nothing: do without it in a failover"),
}
"""Services whose control plane is in one region, and what does the same in the data plane (AWS whitepaper, *Fault
Isolation Boundaries*, appendix A and B)."""


class Places:
    """Where an endpoint is: address or region -> site, from the settings of the system."""

    def __init__(self, loaded: LoadedSystem) -> None:
        self._sites = tuple(loaded.system.sites)
        self._at: dict[str, set[str]] = defaultdict(set)
        self._regions = {s.region: name for name, s in loaded.system.sites.items() if s.region}
        for settings in loaded.settings.values():
            self._walk(settings.model_dump(by_alias=True), "")

    def _walk(self, value: Any, site: str) -> None:
        if isinstance(value, Mapping):
            own = value.get("site")
            site = own if own in self._sites else site
            for key, each in value.items():
                below = key if key in self._sites else site
                if isinstance(own, str) and isinstance(key, str):
                    self._note(key, site)
                self._walk(each, below)
                if isinstance(each, Mapping) and each.get("site") in self._sites:
                    self._note(key, each["site"])  # a node's own name, as commands on hosts have it
        elif isinstance(value, list | tuple):
            for each in value:
                self._walk(each, site)
        elif isinstance(value, str) and site:
            self._note(value, site)

    def _note(self, text: Any, site: str) -> None:
        if not site or not isinstance(text, str) or text.startswith(("env:", "file:", "prefect:", "aws-secret:")):
            return
        with contextlib.suppress(BadInput, ValueError):
            text = expand(text)
            parts = urlsplit(text)
            if parts.scheme in ("http", "https") and parts.hostname:
                text = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
            self._at[text].add(site)
            host, _, port = text.rpartition(":")
            if port.isdecimal() and host:
                self._at[host.strip("[]")].add(site)

    async def names(self) -> None:
        """Find the addresses of names, as sockets are heard of by address."""
        loop = asyncio.get_running_loop()
        for text, sites in list(self._at.items()):
            host, _, port = text.rpartition(":")
            if not port.isdecimal() or _is_address(host):
                continue
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2.0):
                    for info in await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
                        self._at[f"{info[4][0]}:{port}"] |= sites

    def sites_of(self, address: str) -> set[str]:
        """Sites that the settings give this very address; empty where that cannot be told.

        An address of which only the host is known counts where that host is of one site.
        """
        if address in self._at:
            return self._at[address]
        if " " in address:  # a command line: it is where its target is
            return {s for word in address.split() for s in self._at.get(word, ())}
        host = self._at.get(address.rpartition(":")[0].strip("[]"), set())
        return host if len(host) == 1 else set()

    def site_of_region(self, region: str) -> str:
        """Empty where no site, or more than one, is there."""
        found = {self._regions[region]} if region in self._regions else self._at.get(region, set())
        return next(iter(found)) if len(found) == 1 else ""


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.strip("[]"))
        return True
    return False


@dataclass
class Ears:
    """Hears each step; ``cut``: the site of which nothing answers."""

    places: Places
    cut: str = ""
    calls: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """step -> addresses, and ``service:operation@region`` for AWS."""
    aws: dict[str, set[Call]] = field(default_factory=lambda: defaultdict(set))
    leave: str = ""

    @contextlib.contextmanager
    def around(self, step: PlannedStep, roles: Roles) -> Iterator[None]:
        """Listen while ``step`` is looked at."""
        reached.install()
        self.leave = roles.by_name["failed"]

        def socket_or_command(address: str) -> None:
            self.calls[step.id].add(address)
            if self.cut in self.places.sites_of(address):
                raise TimeoutError(f"{address} is cut off: it is in {self.cut}, as in an outage of it")

        def aws(call: Call) -> None:
            self.aws[step.id].add(call)
            if self.cut and self.places.site_of_region(call.region) == self.cut:
                raise Unreachable(f"{call.host} is cut off: it is in {self.cut}, as in an outage of it")

        tokens = reached.LISTEN.set(socket_or_command), HEARD.set(aws)
        try:
            yield
        finally:
            reached.LISTEN.reset(tokens[0])
            HEARD.reset(tokens[1])


@dataclass(frozen=True)
class Audit:
    """``calls``: step -> what it calls, sorted, each with the site it is in."""

    calls: Mapping[str, tuple[str, ...]]
    findings: tuple[Finding, ...]


async def audit(request: Request, loaded: LoadedSystem) -> Audit:
    """Observe all steps as in an outage, listening; then those once more that call into the site that is left."""
    places = Places(loaded)
    await places.names()
    ears = Ears(places)
    ready, roles, free = await preview.observe(request, ears.around)
    leave = roles.by_name["failed"]
    calls = {s.id: tuple(sorted(_told(ears, s.id))) for s in ready.plan.steps}
    suspects = {s.id for s in ready.plan.steps if not _about(s, roles, leave) and _there(ears, s.id, leave)}
    findings = _control_planes(ears, leave)
    if suspects:
        cut = Ears(places, cut=leave)
        _, _, without = await preview.observe(request, cut.around)
        for before, after in zip(free, without, strict=True):
            if before.step.id in suspects and before.error is None and after.error is not None:
                if isinstance(after.error, NotYet | SafetyRefusal):
                    continue  # it waits for an earlier step, as it should
                there = ", ".join(sorted(_there(ears, before.step.id, leave)))
                says = f"{before.step.id} needs {there}, in the site that is left"
                fix = "name the endpoint of the target, or mark the step may_be_gone"
                findings.append(Finding("dependencies", "failing", says, fix))
    if not findings:
        said = f"{len(calls)} steps were heard; none needs {leave}, which would be gone"
        findings.append(Finding("dependencies", "ok", said))
    return Audit(calls, tuple(findings))


def _told(ears: Ears, step: str) -> Iterator[str]:
    for address in ears.calls[step]:
        yield f"{address} ({', '.join(sorted(ears.places.sites_of(address))) or 'no site'})"
    for call in ears.aws[step]:
        site = ears.places.site_of_region(call.region)
        yield f"{call.service}:{call.operation} at {call.host}, {call.region} ({site or 'no site'})"


def _there(ears: Ears, step: str, leave: str) -> set[str]:
    """What of the step's calls is in the site that is left."""
    found = {a for a in ears.calls[step] if leave in ears.places.sites_of(a)}
    return found | {f"{c.host} ({c.region})" for c in ears.aws[step] if ears.places.site_of_region(c.region) == leave}


def _about(step: PlannedStep, roles: Roles, leave: str) -> bool:
    """The step is about the site that is left: it has to call there, and knows that it may be dark."""
    fields = type(step.action).model_fields.items()
    named = (getattr(step.action, n) for n, info in fields if any(isinstance(m, SiteParam) for m in info.metadata))
    return any(roles.by_name.get(str(role)) == leave for role in named)


def _control_planes(ears: Ears, leave: str) -> list[Finding]:
    found = []
    for step in sorted(ears.aws):
        for service in sorted({c.service for c in ears.aws[step]} & set(ONE_REGION)):
            region, instead = ONE_REGION[service]
            there = ears.places.site_of_region(region) == leave
            says = f"{step} goes through the control plane of {service}, which is in {region} alone"
            says += f", the region of {leave}" if there else ""
            found.append(Finding("dependencies", "failing" if there else "warning", says, f"use {instead}"))
    return found
