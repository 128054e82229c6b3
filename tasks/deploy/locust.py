"""Load tests by locust, headless in a process of its own. Fulfils ``tasks.deploy.protocol.LoadTests``.

Relied on (docs.locust.io, *Running Locust without the web UI*, *Command line options*): ``--headless -u -r -t`` end by
themselves; ``--json`` prints the statistics of each request on stdout, with ``response_times``, a count for each number
of milliseconds; ``--exit-code-on-error 0``: requests that failed are a result and no failure of the test.
Load is sent only to addresses in ``networks``; that is this machine, unless the settings name others.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import json
import os
import signal
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from tasks.contract import Surroundings, in_thread
from tasks.deploy.protocol import Load, Loaded
from tasks.errors import BadInput, NotYet, Rejected, SafetyRefusal, Unreachable
from tasks.quantities import Duration
from tasks.variables import expand

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
"""Of our own environment; whatever secrets are in the rest are not the load test's business."""


class LocustSettings(BaseModel):
    """As in ``runbooks/lab/system.yaml``, component ``load``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: dict[str, str] = Field(min_length=1)
    """Site -> base URL of its front door."""
    file: str
    """The locustfile: what visitors do."""
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = (
        ipaddress.IPv4Network("127.0.0.0/8"),
        ipaddress.IPv6Network("::1/128"),
    )
    """Every address of a target must be in one of these."""
    spare: Duration = Field(default=30.0, gt=0)
    """How much longer than the load itself its process may take, its start and its end together."""


class Locust:
    """Fulfils ``LoadTests``."""

    Settings: ClassVar[type[BaseModel]] = LocustSettings

    def __init__(self, settings: LocustSettings, around: Surroundings) -> None:
        self._settings, self._component = settings, around.component

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    async def target(self, site: str) -> str:
        url = self._settings.sites.get(site)
        if url is None:
            known = ", ".join(self._settings.sites)
            raise BadInput(f"{self._component}: no site {site!r} in its settings; known: {known}")
        await self.allowed(url)
        return url

    async def allowed(self, url: str) -> None:
        if importlib.util.find_spec("locust") is None:
            raise BadInput(f"{self._component}: locust is not installed: pip install 'relight[updates]'")
        file = Path(expand(self._settings.file))
        if not await in_thread(file.is_file):
            raise BadInput(f"{self._component}: there is no locustfile {file}")
        host = urlsplit(url).hostname or ""
        try:
            found = await in_thread(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except OSError as e:
            raise Unreachable(f"{self._component}: {host} of {url} does not resolve: {e}") from e
        for address in {str(one[4][0]) for one in found}:
            if not any(ipaddress.ip_address(address) in network for network in self._settings.networks):
                allowed = ", ".join(str(n) for n in self._settings.networks)
                raise SafetyRefusal(
                    f"{self._component}: {url} is {address}, and load may only go to {allowed}. If it is meant, say so"
                    " in `networks` of the component."
                )

    async def run(self, url: str, load: Load) -> Loaded:
        await self.allowed(url)
        limit_s = load.for_s + self._settings.spare
        words = ["-f", expand(self._settings.file), "--headless", "--host", url, "--users", str(load.users)]
        words += ["--spawn-rate", str(load.users), "--run-time", f"{load.for_s:.0f}s", "--stop-timeout", "5"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "locust", *words, "--json", "--exit-code-on-error", "0", "--loglevel", "ERROR",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={k: os.environ[k] for k in _KEPT if k in os.environ},
        )  # fmt: skip
        try:
            async with asyncio.timeout(limit_s):
                out, err = await process.communicate()
        except TimeoutError as e:
            raise NotYet(f"{self._component}: the load test of {url} did not end within {limit_s:g} s") from e
        finally:
            if process.returncode is None:  # out of time, or the run is being stopped: no load may go on without it
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        try:
            return loaded(json.loads(out))
        except (ValueError, KeyError, TypeError) as e:
            said = err.decode(errors="replace").strip()[-300:] or f"status {process.returncode}"
            raise Rejected(f"{self._component}: locust gave no statistics: {said}. Try its locustfile by hand.") from e


def loaded(statistics: list[dict[str, Any]]) -> Loaded:
    """What ``--json`` prints. Raises KeyError, ValueError, TypeError for something else."""
    took: Counter[int] = Counter()
    for one in statistics:
        took.update({int(float(ms)): int(n) for ms, n in one["response_times"].items()})
    by_name = {f"{s['method']} {s['name']}": (int(s["num_requests"]), int(s["num_failures"])) for s in statistics}
    total, seen, p95 = sum(took.values()), 0, None
    for ms in sorted(took):
        seen += took[ms]
        if seen >= 0.95 * total:
            p95 = ms / 1000
            break
    return Loaded(sum(n for n, _ in by_name.values()), sum(f for _, f in by_name.values()), p95, by_name)


PROVIDER = Locust
