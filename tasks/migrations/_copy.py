"""A copy of a cluster for one rehearsal, on loopback, that is gone afterwards whatever happens to whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.database._session import Server, endpoint
from tasks.errors import NotYet, Rejected
from tasks.migrations import _guardian
from tasks.quantities import Duration
from tasks.secrets import resolved
from tasks.variables import expand

ROOM = 1.3
"""The copy, and what the migrations write on it: times the size of the original. A rewrite may need more."""
LEAVE_S = 10.0


class CopySettings(BaseModel):
    """Where and how the copy of a rehearsal is made.

    Attributes:
        folder: below which it is; the temporary directory where that is empty.
        bin: PostgreSQL's programs; ``{major}`` is the server's.
        account: runs the copy's server where the engine is root, which PostgreSQL refuses to be.
        rate: limit for what is read from the original, as ``pg_basebackup --max-rate`` takes it; empty: none.
        within: how long the copy may take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = ""
    bin: str = "/usr/lib/postgresql/{major}/bin"
    account: str = "postgres"
    rate: str = Field(default="", pattern=r"^(\d+[kM]?)?$")
    within: Duration = 3600.0

    def parent(self) -> Path:
        """The folder, expanded."""
        return Path(expand(self.folder) if self.folder else tempfile.gettempdir())


@dataclass(frozen=True)
class Original:
    """What is copied. ``server``: how to log in at it; ``replication``: user and reference to the password."""

    server: Server
    replication: tuple[str, str | None]
    version_num: int
    bytes: int
    libraries: str


@dataclass(frozen=True)
class Copy:
    """A copy that runs. ``seconds``: how long it took to make."""

    server: Server
    seconds: float
    bytes: int


@contextlib.asynccontextmanager
async def copied(settings: CopySettings, of: Original) -> AsyncIterator[Copy]:
    """The running copy. Raises Rejected where it cannot be made, NotYet where it does not get ready ``within``."""
    parent = settings.parent()
    free = shutil.disk_usage(parent).free
    if free < ROOM * of.bytes:
        raise Rejected(
            f"a copy of {of.server.label} needs {ROOM * of.bytes / 2**30:.2f} GiB in {parent}, which has"
            f" {free / 2**30:.2f} free; name another folder in copy.folder. Nothing was copied."
        )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tasks.migrations._guardian"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the engine; the guardian follows by its stdin
    )
    assert process.stdin is not None  # noqa: S101 - asked for just now
    try:
        process.stdin.write(json.dumps(await _request(settings, of)).encode() + b"\n")
        ready = await _ready(process, settings.within, of.server.label)
        label, address = f"the copy of {of.server.label}", f"127.0.0.1:{ready['ready']}"
        yield Copy(replace(of.server, label=label, address=address), ready["seconds"], ready["bytes"])
    finally:
        process.stdin.close()  # first and without waiting: from here on the guardian needs nobody
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await process.wait()


async def _request(settings: CopySettings, of: Original) -> dict[str, Any]:
    host, port = endpoint(of.server.address)
    user, reference = of.replication
    secret = (await resolved(reference)).get_secret_value() if reference else ""
    return {
        "parent": str(settings.parent()),
        "bin": settings.bin.format(major=of.version_num // 10000),
        "account": settings.account if os.geteuid() == 0 else "",
        "rate": settings.rate,
        "host": host,
        "port": port,
        "user": user,
        "password": secret,  # by a pipe, so in no argument and no environment
        "sslmode": of.server.sslmode,
        "login": of.server.user,
        "libraries": of.libraries,
    }


async def _ready(process: asyncio.subprocess.Process, within_s: float, label: str) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101 - asked for by the caller
    try:
        async with asyncio.timeout(within_s):
            line = await process.stdout.readline()
    except TimeoutError:
        raise NotYet(f"the copy of {label} was not ready within {within_s:g} s, and was given up") from None
    said: dict[str, Any] = json.loads(line or b"{}")
    if "ready" not in said:
        raise Rejected(f"no copy of {label} could be made: {said.get('error', 'its guardian ended')}")
    return said


def left_behind(settings: CopySettings) -> tuple[str, ...]:
    """Folders that a rehearsal left because its guardian was killed; the next one removes them."""
    return tuple(str(p) for p in _guardian.abandoned(settings.parent()))
