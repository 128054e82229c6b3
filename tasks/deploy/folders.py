"""Releases as folders on this machine, and one symbolic link a site to the one that its instances start from.

A release is a folder whose file ``RELEASE`` says its own name: a copy that is not complete has none yet. An instance
says its version in the JSON of its readiness answer (``{"version": "2"}``), with status 200 when it is ready.
The link is replaced by rename(2), which is atomic: nobody ever starts from half a release, or from none.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import ClassVar

import httpx
from pydantic import BaseModel, ConfigDict, Field

from tasks.contract import Surroundings, in_thread
from tasks.deploy.protocol import Answer
from tasks.errors import BadInput, Rejected
from tasks.quantities import Duration
from tasks.variables import expand


class FoldersSettings(BaseModel):
    """As in ``runbooks/lab/system.yaml``, component ``releases``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: Duration = 2.0
    """Of each question to an instance."""
    releases: str
    """Folder of the release folders."""
    sites: dict[str, str] = Field(min_length=1)
    """Site -> its link."""
    ready_path: str = Field(default="/readyz", pattern="^/")


class Folders:
    """Fulfils ``tasks.deploy.protocol.Releases``."""

    Settings: ClassVar[type[BaseModel]] = FoldersSettings

    def __init__(self, settings: FoldersSettings, around: Surroundings) -> None:
        self._settings = settings
        self._component = around.component

    async def available(self, site: str) -> tuple[str, ...]:
        self._link(site)
        folder = Path(expand(self._settings.releases))
        try:
            return await in_thread(lambda: tuple(sorted(p.name for p in folder.iterdir() if _says(p) == p.name)))
        except OSError as e:
            raise Rejected(f"{self._component}: cannot read the releases in {folder}: {e.strerror}") from e

    async def chosen(self, site: str) -> str:
        link, folder = self._link(site), Path(expand(self._settings.releases))
        try:
            found, home = await in_thread(lambda: (_target(link), folder.resolve()))
        except OSError as e:
            raise Rejected(f"{self._component}: link {link} of {site} leads nowhere: {e.strerror}") from e
        if found is None or found.parent != home:
            raise Rejected(
                f"{self._component}: {link} of {site} is {found or 'no symbolic link'}; expected a link into {folder}"
            )
        return found.name

    async def switch(self, site: str, version: str) -> None:
        there = await self.available(site)
        if version not in there:
            known = ", ".join(there) or "none"
            raise BadInput(f"{self._component}: no release {version!r} for {site}; there are: {known}")
        link, release = self._link(site), Path(expand(self._settings.releases)) / version
        try:
            await in_thread(lambda: _point(link, release))
        except OSError as e:
            raise Rejected(f"{self._component}: cannot point {link} to release {version}: {e.strerror}") from e

    async def ask(self, address: str) -> Answer:
        url = f"http://{address}{self._settings.ready_path}"
        try:
            async with (
                asyncio.timeout(self._settings.timeout),
                httpx.AsyncClient(timeout=self._settings.timeout, trust_env=False, verify=False) as client,  # noqa: S501 - plain HTTP inside a site, no TLS to verify
            ):
                answer = await client.get(url)
        except (httpx.HTTPError, TimeoutError) as e:
            return Answer(None, ready=False, why=f"{url}: {str(e) or type(e).__name__}")
        try:
            said = answer.json()
        except ValueError:
            said = {}
        version = said.get("version") if isinstance(said, dict) else None
        why = "" if answer.is_success else f"{url}: HTTP {answer.status_code} {answer.text[:200].strip()}"
        return Answer(version if isinstance(version, str) else None, ready=answer.is_success, why=why)

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    def _link(self, site: str) -> Path:
        try:
            return Path(expand(self._settings.sites[site]))
        except KeyError:
            known = ", ".join(self._settings.sites)
            raise BadInput(f"{self._component}: no site {site!r} in its settings; known: {known}") from None


def _says(folder: Path) -> str | None:
    """What a release folder calls itself; None where it does not."""
    try:
        return (folder / "RELEASE").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _target(link: Path) -> Path | None:
    return link.resolve(strict=True) if link.is_symlink() else None


def _point(link: Path, release: Path) -> None:
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(release, link.parent))
    part.replace(link)


PROVIDER = Folders
