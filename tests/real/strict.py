"""The strict server of ``strict_aws.py``, as tests use it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aws
import pytest

from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.contract import Context, RunInfo
from tasks.errors import RelightError
from tasks.network import Sockets
from tasks.simulation import Process, Simulation, enter


class Strict(aws.Moto):
    """moto's server with what it leaves out, and with faults."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        where = (host, aws.free_port(host))
        script = str(Path(__file__).with_name("strict_aws.py"))
        # EC2's images are most of the time that a reset costs; nobody here looks at one.
        environment = {**aws.KEYS, **aws.ALONE, "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}
        environment["MOTO_S3_DEFAULT_MAX_KEYS"] = "50"  # of S3, pages of so many
        aws.Server.__init__(
            self, [sys.executable, script, host, str(where[1])], where, folder / "strict.log", environment
        )
        self._clients = {}

    def strict(self, **body: Any) -> dict[str, Any]:
        return json.loads(self.post("/strict", json.dumps(body).encode()))

    def set(self, **state: Any) -> None:
        self.strict(set=state)

    def fault(self, operation: str, kind: str, times: int = 1, after: int = 0) -> None:
        self.strict(fault={"operation": operation, "kind": kind, "times": times, "after": after})

    def reset(self) -> None:
        super().reset()
        self.strict(reset=True)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Strict]:
    """A server for a module; boto3's environment points at it."""
    server = Strict(folder)
    try:
        server.wait()
        with pytest.MonkeyPatch.context() as patch:
            for name in [n for n in os.environ if n.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in server.env().items():
                patch.setenv(name, value)
            yield server
    finally:
        server.stop()


SITES = ("west", "east")


def around(component: str, clock: Any = None, system: str = "venue") -> Any:
    """What a provider is built with."""
    return SimpleNamespace(system=system, component=component, sites=SITES, clock=clock, components={}.__getitem__)


def context(components: dict[str, Any], *, left_s: float = 120.0, guard: Any = lambda: None, **more: Any) -> Context:
    """A run from west to east that is at its first step."""
    clock = LoopClock()
    run = RunInfo(more.pop("run_id", "run-1"), "venue", "failover", "forced", 1, "2026-11-26T00:00:00+00:00")
    roles = {s: s for s in SITES} | {"failed": "west", "active": "west", "target": "east"}
    return Context(
        run, clock, roles, components.__getitem__, clock.monotonic() + left_s, guard=guard, network=Sockets(), **more
    )


def with_provider(build: Any, settings: dict[str, Any], component: str, test: Any) -> None:
    """Run ``test(provider)`` in a loop, and close the provider."""

    async def main() -> None:
        provider = build(build.Settings.model_validate(settings), around(component, LoopClock()))
        try:
            await test(provider)
        finally:
            await provider.aclose()

    asyncio.run(main())


# ---- one story, told by a provider and by its twin ----


class Told:
    """Writes down what came of each call of a story."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []

    async def __call__(
        self, label: str, call: Awaitable[Any], show: Callable[[Any], Any] = lambda found: found
    ) -> None:
        try:
            self.lines.append((label, show(await call)))
        except RelightError as e:
            self.lines.append((label, next(c.__name__ for c in type(e).__mro__ if c.__module__ == "tasks.errors")))

    async def becomes(self, label: str, look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
        """Until ``look`` gives ``wanted``: what is true in the end counts, not when."""
        seen = None
        for _ in range(1200):
            seen = await look()
            if seen == wanted:
                break
            await asyncio.sleep(0.05)
        self.lines.append((label, seen))


def told_by(run: Callable[[Any], None], story: Any) -> list[tuple[str, Any]]:
    """The transcript of a story; ``run`` calls what it is given with the provider."""
    told = Told()
    run(lambda provider: story(told, provider))
    return told.lines


def by_twin(twin: Any, real: Any, world: Callable[[], Any], component: str, test: Any) -> None:
    """Run ``test(twin)`` under virtual time."""

    async def main() -> None:
        enter(Process("test"))
        await test(twin(real, around(component), world(), Simulation()))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
