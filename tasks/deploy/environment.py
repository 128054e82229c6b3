"""An environment that is no site, such as staging: HAProxy, supervisord and a link to a release, each of its own.

It is made of the providers that sites have (``traffic.haproxy``, ``capacity.supervisord``, ``deploy.folders``), so a
release gets there by the same steps. It is none of them itself: who looks for all balancers, or for all instances, does
not find it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.capacity.supervisord import Site, Supervisord, SupervisordSettings
from tasks.contract import Surroundings
from tasks.deploy.folders import Folders, FoldersSettings
from tasks.deploy.protocol import Answer, Fleet
from tasks.errors import BadInput
from tasks.quantities import Duration
from tasks.traffic.haproxy import BalancerSettings, HaProxy, SiteBalancer


class EnvironmentSettings(BaseModel):
    """As in ``runbooks/lab/system.yaml``, component ``staging``; no key is called ``sites``, for it has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: Duration = 2.0
    """Of each question and command."""
    front: str = Field(pattern=r"^[\w.-]+:\d+$")
    """``host:port`` of its front door."""
    releases: str
    """Folder of the release folders."""
    link: str
    """What its servers start from."""
    balancer: str
    """Path of HAProxy's stats socket."""
    supervisor: str
    """Path of supervisord's socket."""
    first_address: str
    """``a.b.c.d:port`` of server 1; server n serves on the same port of the address n - 1 further."""
    group: str = "app"
    ready_path: str = Field(default="/readyz", pattern="^/")
    minimum: int = Field(default=1, ge=0)
    maximum: int = Field(default=2, ge=1)


class OwnEnvironment:
    """Fulfils ``tasks.deploy.protocol.Environment``. Raises BadInput where its name is that of a site."""

    Settings: ClassVar[type[BaseModel]] = EnvironmentSettings

    def __init__(self, settings: EnvironmentSettings, around: Surroundings) -> None:
        name = around.component
        if name in (*around.sites, "active", "failed", "target"):
            raise BadInput(f"component {name}: an environment cannot be called as a site or a role; rename it")
        self._settings, self._name, here = settings, name, replace(around, sites=(name,))
        said = settings
        self._folders = Folders(
            FoldersSettings(
                timeout=said.timeout, releases=said.releases, sites={name: said.link}, ready_path=said.ready_path
            ),
            here,
        )
        self._supervisord = Supervisord(
            SupervisordSettings(
                timeout=said.timeout,
                group=said.group,
                sites={name: Site(socket=said.supervisor, first_address=said.first_address)},
                ready_path=said.ready_path,
                minimum=said.minimum,
                maximum=said.maximum,
            ),
            here,
        )
        self._balancer = HaProxy(
            BalancerSettings(timeout=said.timeout, sites={name: SiteBalancer(socket=said.balancer)}), here
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def url(self) -> str:
        return f"http://{self._settings.front}"

    def fleet(self) -> Fleet:
        return Fleet(self._folders, self._supervisord, self._supervisord, self._balancer)

    async def front(self) -> Answer:
        return await self._folders.ask(self._settings.front)

    async def aclose(self) -> None:
        for part in (self._folders, self._supervisord, self._balancer):
            await part.aclose()


PROVIDER = OwnEnvironment
