"""What the engine itself needs, on the worst day: its state folder, the lease, people to tell, secrets."""

from __future__ import annotations

import os
import shutil
import tempfile

from flows.engine import killswitch, leasing, places
from flows.engine.providers import Components
from flows.engine.system import LoadedSystem
from tasks.errors import RelightError
from tasks.network import Ask, Network
from tasks.people.protocol import Directory
from tasks.readiness import Finding, texts
from tasks.secrets import SCHEMES, redact, resolved

ROOM_BYTES = 256 * 2**20


async def check(loaded: LoadedSystem, components: Components, network: Network) -> list[Finding]:
    """Never raises: what cannot be asked is *unknown* or *failing*."""
    found = [_state(), _paused(loaded.system.system), *await _lease(components), *_people(components)]
    return [*found, *await _prefect(network), *await _secrets(loaded)]


def _state() -> Finding:
    home = places.state_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".ready-") as file:
            file.write(b"x")
            os.fsync(file.fileno())
        free = shutil.disk_usage(home).free
    except OSError as e:
        return Finding("engine", "failing", f"nothing can be written to {home}: {e.strerror}", "make it writable")
    if free < ROOM_BYTES:
        says = f"{home} has {free // 2**20} MiB left; without a journal no run changes anything"
        return Finding("engine", "failing", says, "make room")
    return Finding("engine", "ok", f"journals can be written to {home}")


def _paused(system: str) -> Finding:
    try:
        killswitch.check(system)
    except RelightError as e:
        return Finding("engine", "failing", e.message, "relight unpause")
    return Finding("engine", "ok", "the kill switch is off")


async def _lease(components: Components) -> list[Finding]:
    store = leasing.store_of(components)
    if store is None:
        return [Finding("lease", "ok", "the lease is in the state folder: one engine, on this machine")]
    try:
        held, _ = await store.read()
    except RelightError as e:
        fix = "without it no run starts; bring it up, or put it where no site takes it away (docs/leases.md)"
        return [Finding("lease", "failing", f"the lease store does not answer: {e.message}", fix)]
    if held is not None and held.paused:
        return [Finding("lease", "failing", f"paused for every machine: {held.paused}", "relight unpause --system …")]
    return [Finding("lease", "ok", f"{store.where} answers")]


def _people(components: Components) -> list[Finding]:
    if any(d.subscriptions() for _, d in components.of(Directory)):
        return []  # their references are checked with the other secrets
    fix = "add notify to a people.directory component (docs/people.md)"
    return [Finding("notification", "warning", "nobody is told of runs and alerts of this system", fix)]


async def _prefect(network: Network) -> list[Finding]:
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        return []
    try:
        reply = await network.http(Ask("GET", f"{url.rstrip('/')}/health"), within_s=2.0)
        why = "" if reply.good else f"HTTP {reply.status}"
    except RelightError as e:
        why = e.message
    if why:
        says = f"the Prefect API does not answer ({why}); runs go on without it, nobody sees them there"
        return [Finding("prefect", "warning", says, "start it, or unset PREFECT_API_URL")]
    return [Finding("prefect", "ok", "the Prefect API answers (it is only the window)")]


async def _secrets(loaded: LoadedSystem) -> list[Finding]:
    found = []
    for name, settings in loaded.settings.items():
        references = {t for _, t in texts(settings) if t.partition(":")[0] in SCHEMES and "//" not in t}
        person = loaded.system.components[name].domain == "people"
        for reference in sorted(references):
            try:
                await resolved(reference)
            except RelightError as e:
                # one approver or receiver of several may be without; the step that asks says when too few are left
                level = "warning" if person else "failing"
                fix = "set it where the engine runs"
                found.append(Finding("secrets", level, redact(e.message), fix, name))  # type: ignore[arg-type]
        if references and not any(f.component == name for f in found):
            found.append(Finding("secrets", "ok", f"{len(references)} secrets of {name} resolve", component=name))
    return found
