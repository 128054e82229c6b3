"""The command line's brakes: the kill switch, and the word of a person after a run that was automatic."""

from __future__ import annotations

import getpass
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.cli_intake import JsonOption
from flows.engine import eventloop, killswitch, leasing, places, safety, system
from flows.engine import lease as leases
from flows.engine.journal import of_type, read
from flows.engine.providers import Components
from flows.engine.storelease import acknowledged
from tasks.clock import LoopClock
from tasks.errors import BadInput
from tasks.leases.protocol import Held

app = typer.Typer()
out = Console(highlight=False, markup=False)


SystemOption = Annotated[str, typer.Option("--system", "-s", help="Only this system; default: everything.")]


@app.command()
def pause(
    why: Annotated[str, typer.Argument(help="Why, and who.")],
    system_name: SystemOption = "",
    as_json: JsonOption = False,
) -> None:
    """Stop everything, or one system: no run starts, and none that runs changes anything more.

    A system whose lease is kept in a store is stopped on every machine.

    Example: `relight pause "network maintenance, J. Doe"`, `relight pause "disks, J. Doe" --system lab`
    """
    loaded = system.load(places.system_file(system_name)) if system_name else None
    file = killswitch.pause_file(loaded.system.system if loaded else "")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(why + "\n", encoding="utf-8")
    except OSError as e:
        says = f"NOT paused: {file} cannot be written: {e.strerror}"
        raise BadInput(f"{says}. Runs go on; make it writable, or stop each engine (SIGTERM, Ctrl-C)") from e
    _told({"paused": True, "file": str(file), "why": why}, f"paused ({file})", loaded, as_json=as_json)


@app.command()
def unpause(system_name: SystemOption = "", as_json: JsonOption = False) -> None:
    """Lift the pause.

    Example: `relight unpause`, `relight unpause --system lab`
    """
    loaded = system.load(places.system_file(system_name)) if system_name else None
    lifted = loaded.system.system if loaded else ""
    killswitch.pause_file(lifted).unlink(missing_ok=True)
    everything, systems = _still_paused(lifted)
    if lifted and everything:
        text = f"system {lifted} is not paused by itself, but everything is; lift that with: relight unpause"
    else:
        lift = "not paused, but system {0} is; lift that with: relight unpause --system {0}"
        text = "\n".join(lift.format(name) for name in systems) or "not paused"
    found = {"paused": everything, "systems": systems, "why": ""}
    _told(found, text, loaded, as_json=as_json)


def _still_paused(lifted: str) -> tuple[bool, list[str]]:
    """Whether everything is, and the systems that are each by themselves, though ``lifted`` (empty: all) is not."""
    if lifted:
        return killswitch.pause_file().exists(), []
    return False, sorted(p.parent.name for p in (places.state_home() / "systems").glob("*/paused"))


def _told(found: dict[str, Any], text: str, loaded: system.LoadedSystem | None, *, as_json: bool) -> None:
    """Say what is so on this machine, then tell the system's store; ``store`` stays null where that did not work."""
    found = {"system": loaded.system.system if loaded else None, **found, "store": None}
    if not as_json:
        out.print(text, soft_wrap=True)
    try:
        found["store"] = "" if loaded is None else eventloop.run(_tell_the_store(loaded, found["why"]))
    finally:
        if as_json:
            print(json.dumps(found))
    if found["store"] and not as_json:
        out.print(f"{'set' if found['why'] else 'lifted'} in {found['store']}, for every machine", soft_wrap=True)


async def _tell_the_store(loaded: system.LoadedSystem, why: str) -> str:
    """The flag in the lease's record; where that is, empty without one. Raises what a store raises."""
    components = Components(loaded, LoopClock())
    try:
        store = leasing.store_of(components)
        if store is None:
            return ""
        await acknowledged(store, lambda held, _gone: replace(held, paused=why))
        return store.where
    finally:
        await components.aclose()


@app.command()
def acknowledge(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run id, or `last`.")],
    who: Annotated[str, typer.Option("--who", help="Who looked; default: the user of this terminal.")] = "",
    system_name: Annotated[
        str, typer.Option("--system", "-s", help="The system, where the run's journal is on another machine.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Say that a person has looked at a run, so that automatic runs of its system may start again.

    Example: `relight acknowledge last --who "J. Doe, ticket 12"`
    """
    name = run_id
    if run_id == "last" or not system_name:
        folder = places.run_folder(run_id)
        name = folder.name
        head = next(of_type(read(folder / "journal.jsonl").records, "run_started"), None)
        if head is None:
            raise BadInput(f"run {name} never began: its journal has no run_started record")
        system_name = system_name or head["files"]["system"]
    by = who or os.environ.get("SUDO_USER") or getpass.getuser()
    held = eventloop.run(_acknowledge(system.load(places.system_file(system_name)), name, by))
    last = held.last
    if as_json:
        told = {} if last is None else {"acknowledged_by": last.acknowledged_by, "at": last.acknowledged_at}
        print(json.dumps({"run_id": name, **told}))
    elif last is not None:
        out.print(f"{name} was acknowledged by {last.acknowledged_by} at {last.acknowledged_at}", soft_wrap=True)


async def _acknowledge(loaded: system.LoadedSystem, run_id: str, who: str) -> Held:
    change = safety.acknowledge(run_id, who, datetime.now(UTC))
    components = Components(loaded, LoopClock())
    try:
        store = leasing.store_of(components)
        if store is not None:
            return await acknowledged(store, change)
        return leases.acknowledged(places.state_home() / "systems" / loaded.system.system, change)
    finally:
        await components.aclose()
