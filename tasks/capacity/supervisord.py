"""Instances as processes of one supervisord a site, over XML-RPC on its unix socket.

Sources: http://supervisord.org/api.html (methods and faults), http://supervisord.org/subprocess.html#process-states.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import shlex
from dataclasses import dataclass
from typing import Any, ClassVar
from xml.parsers.expat import ExpatError
from xmlrpc.client import Error as XmlRpcError
from xmlrpc.client import Fault, dumps, loads

import httpx
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.capacity.protocol import Instance, Limits
from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, NotYet, Rejected, Unreachable
from tasks.quantities import Duration
from tasks.variables import expand

_ALIVE = {"STARTING", "RUNNING"}
# In this order: what was never tried first; what supervisord itself gave up on last.
_STARTABLE = {"STOPPED": 0, "EXITED": 1, "FATAL": 2}
_FAULT_SHUTDOWN, _FAULT_ALREADY_STARTED, _FAULT_NOT_RUNNING = 6, 60, 70
_CANNOT_START = {20, 21, 30, 40, 50}
"""NO_FILE, NOT_EXECUTABLE, FAILED, ABNORMAL_TERMINATION, SPAWN_ERROR: this process will not; another one may."""
_NUMBER = re.compile(r"\D*(\d+)", re.ASCII)


class Site(BaseModel):
    """One site's supervisord and where its first instance serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    socket: str
    first_address: str
    """``a.b.c.d:port`` of process 1; process n serves on the same port of the address n - 1 further."""

    @field_validator("first_address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        ipaddress.IPv4Address(host)  # its error is a ValueError, as pydantic wants it
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"expected a.b.c.d:port, got {value!r}")
        return value

    def address(self, number: int) -> str:
        host, _, port = self.first_address.rpartition(":")
        return f"{ipaddress.IPv4Address(host) + number - 1}:{port}"


class SupervisordSettings(BaseModel):
    """As in ``runbooks/lab/system.yaml``, component ``capacity``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: Duration = 2.0
    """Of each call to supervisord and of each readiness check."""
    group: str
    sites: dict[str, Site] = Field(min_length=1)
    ready_path: str = Field(default="/readyz", pattern="^/")
    minimum: int = Field(default=1, ge=0)
    maximum: int = Field(ge=1)

    @model_validator(mode="after")
    def _are_ordered(self) -> SupervisordSettings:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self


@dataclass(frozen=True)
class Process:
    """One process of the group as supervisord reports it; ``number`` is the first number in its name."""

    name: str
    number: int
    state: str
    detail: str


class _Rpc:
    """The XML-RPC of each site's supervisord: one call a connection, bounded."""

    def __init__(self, settings: SupervisordSettings, around: Surroundings) -> None:
        self._settings = settings
        self._component = around.component

    async def _processes(self, site: str) -> list[Process]:
        """Processes of the group by number. Raises BadInput when supervisord has no such group."""
        try:
            every = await self._call(site, "getAllProcessInfo")
        except Fault as fault:
            raise self._rejected(site, "getAllProcessInfo", fault) from fault
        found = []
        for info in every:
            number = _NUMBER.match(info["name"])
            if info["group"] == self._settings.group and number:
                detail = info.get("spawnerr") or info.get("description", "")
                found.append(Process(info["name"], int(number[1]), info["statename"], detail))
        if not found:
            groups = ", ".join(sorted({i["group"] for i in every})) or "none"
            raise BadInput(
                f"{self._component}: supervisord of {site} has no numbered process in group "
                f"{self._settings.group!r}; its groups: {groups}"
            )
        return sorted(found, key=lambda p: p.number)

    async def _call(self, site: str, method: str, *arguments: str, wait: bool | None = None) -> Any:
        """One XML-RPC call. Raises Fault as supervisord gave it.

        ``wait`` is the last argument of the calls that change something; a lost reply to one of them is
        EffectUnknown and not Unreachable.
        """
        path = expand(self._site(site).socket)
        name = f"{self._component}: supervisord of {site} at {path}"
        lost = Unreachable if wait is None else EffectUnknown
        transport = httpx.AsyncHTTPTransport(uds=path, verify=False)  # a unix socket, no TLS to verify
        try:
            async with (
                asyncio.timeout(self._settings.timeout),
                httpx.AsyncClient(transport=transport, timeout=self._settings.timeout) as client,
            ):
                body = dumps(arguments if wait is None else (*arguments, wait), f"supervisor.{method}")
                answer = await client.post(
                    "http://supervisord/RPC2", content=body, headers={"Content-Type": "text/xml"}
                )
        except (httpx.ConnectError, httpx.ConnectTimeout) as e:
            raise Unreachable(f"{name}: no connection ({e}). Is it running, and may this user open the socket?") from e
        except (httpx.HTTPError, TimeoutError) as e:
            why = str(e) or type(e).__name__
            raise lost(f"{name}: no answer to {method} within {self._settings.timeout:g} s ({why})") from e
        if answer.status_code != 200:
            raise Rejected(f"{name}: HTTP {answer.status_code} to {method}; expected 200. Check its credentials.")
        try:
            return loads(answer.text)[0][0]
        except Fault as fault:
            if fault.faultCode == _FAULT_SHUTDOWN:
                raise Unreachable(f"{name}: is shutting down, {method} was not done") from fault
            raise
        except (XmlRpcError, ExpatError, IndexError) as e:
            raise lost(f"{name}: the answer to {method} is no XML-RPC ({e})") from e

    def _rejected(self, site: str, method: str, fault: Fault) -> Rejected:
        return Rejected(f"{self._component}: supervisord of {site} refused {method}: {fault.faultString}")

    def _site(self, site: str) -> Site:
        try:
            return self._settings.sites[site]
        except KeyError:
            known = ", ".join(self._settings.sites)
            raise BadInput(f"{self._component}: no site {site!r} in its settings; known: {known}") from None


class Supervisord(_Rpc):
    """Fulfils ``Capacity`` and ``Startable`` of ``tasks.capacity.protocol``."""

    Settings: ClassVar[type[BaseModel]] = SupervisordSettings

    def limits(self, site: str) -> Limits:
        self._site(site)
        return Limits(self._settings.minimum, self._settings.maximum)

    def scale_line(self, site: str, count: int) -> tuple[str, str]:
        """See ``tasks.capacity.manual.ByHand``: processes 1 … ``count`` of the group."""
        socket = f"unix://{expand(self._site(site).socket)}"
        names = [f"{self._settings.group}:{self._settings.group}{n}" for n in range(1, count + 1)]
        line = shlex.join(["supervisorctl", "-s", socket, "start", *names])
        return f"{line} || true", f"started, or already started, for each of {count}"

    async def instances(self, site: str) -> tuple[Instance, ...]:
        where = self._site(site)
        processes = await self._processes(site)
        # A client of its own each time: a kept connection that the other side closed would look like a lost reply.
        async with httpx.AsyncClient(timeout=self._settings.timeout, trust_env=False, verify=False) as client:  # noqa: S501 - plain HTTP inside a site, no TLS to verify
            ready = await asyncio.gather(
                *(self._ready(client, where.address(p.number), running=p.state in _ALIVE) for p in processes)
            )
        return tuple(
            Instance(f"{site}-{p.name}", site, where.address(p.number), running=p.state in _ALIVE, ready=is_ready)
            for p, is_ready in zip(processes, ready, strict=True)
        )

    async def scale(self, site: str, count: int) -> None:
        limits = self.limits(site)
        if not limits.minimum <= count <= limits.maximum:
            raise BadInput(
                f"{self._component}: {count} instances at {site} asked for; allowed are {limits.minimum} to "
                f"{limits.maximum} (minimum and maximum in the system file)"
            )
        processes = await self._processes(site)
        for process in processes:
            if process.state == "BACKOFF":  # crash-looping: supervisord would bring it up later, above the count
                await self._stop(site, process)
        alive = [p for p in processes if p.state in _ALIVE]
        for process in alive[count:]:
            await self._stop(site, process)
        if len(alive) < count:
            await self._start(site, processes, count - len(alive))

    async def stop(self, site: str, instance: str) -> None:
        process = await self._named(site, instance)
        if process.state in _ALIVE or process.state == "BACKOFF":
            await self._stop(site, process)

    async def start(self, site: str, instance: str) -> None:
        process = await self._named(site, instance)
        if process.state == "STOPPING":  # a start now would be answered with True and forgotten
            raise NotYet(f"{self._component}: {instance} is still stopping")
        if process.state in _ALIVE:
            return
        try:
            await self._call(site, "startProcess", f"{self._settings.group}:{process.name}", wait=False)
        except Fault as fault:
            if fault.faultCode != _FAULT_ALREADY_STARTED:
                raise self._rejected(site, "startProcess", fault) from fault

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    async def _named(self, site: str, instance: str) -> Process:
        processes = await self._processes(site)
        for process in processes:
            if instance == f"{site}-{process.name}":
                return process
        known = ", ".join(f"{site}-{p.name}" for p in processes)
        raise BadInput(f"{self._component}: no instance {instance!r} at {site}; there are {known}")

    async def _start(self, site: str, processes: list[Process], missing: int) -> None:
        candidates = sorted(
            (p for p in processes if p.state in _STARTABLE), key=lambda p: (_STARTABLE[p.state], p.number)
        )
        refused: list[str] = []
        for process in candidates:
            if not missing:
                return
            try:
                await self._call(site, "startProcess", f"{self._settings.group}:{process.name}", wait=False)
            except Fault as fault:
                if fault.faultCode in _CANNOT_START:
                    refused.append(f"{process.name}: {fault.faultString}")
                    continue
                if fault.faultCode != _FAULT_ALREADY_STARTED:
                    raise self._rejected(site, "startProcess", fault) from fault
            missing -= 1
        if missing:
            states = ", ".join(f"{p.name} {p.state}" for p in processes)
            raise Rejected(
                f"{self._component}: supervisord of {site} has no process left to start, {missing} short ({states}"
                f"{'; ' if refused else ''}{'; '.join(refused)}). Look at the logs of those that are down.",
                missing=missing,
                refused=refused,
            )

    async def _stop(self, site: str, process: Process) -> None:
        try:
            await self._call(site, "stopProcess", f"{self._settings.group}:{process.name}", wait=False)
        except Fault as fault:
            if fault.faultCode != _FAULT_NOT_RUNNING:
                raise self._rejected(site, "stopProcess", fault) from fault

    async def _ready(self, client: httpx.AsyncClient, address: str, *, running: bool) -> bool:
        if not running:
            return False
        try:
            async with asyncio.timeout(self._settings.timeout):
                answer = await client.get(f"http://{address}{self._settings.ready_path}")
        except (httpx.HTTPError, TimeoutError):
            return False
        return answer.is_success


PROVIDER = Supervisord
