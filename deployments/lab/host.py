"""Commands on a database host, as an operator would give them over ssh: ``$RELIGHT_LAB/bin/host COMMAND NODE …``.

    host status NODE              {"running": …, "pid": …, "in_recovery_signal": …} on stdout
    host version NODE             {"installed": "15.18 …", "replaced": …} on stdout: what a start would run, and whether
                                  the file that the running server was started from is another one by now
    host start|stop|kill NODE     as the disk says; fast shutdown (SIGINT); SIGKILL of every process, also stopped ones
    host rewind NODE UPSTREAM     pg_rewind the stopped node against its upstream and start it as its standby
    host copy NODE UPSTREAM       the same by a fresh pg_basebackup, which replaces the old data only when complete

Exit status: 0 it is so (also when it was before), 1 it is not, 2 wrong arguments, 255 the host cannot be reached
(a fault of the lab: ``$RELIGHT_LAB/SITE/unreachable`` is there), as ssh(1) has it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import binaries
import database
import layout
import registry
from registry import LabError

START_S = 60.0
STOP_S = 20.0


def main(argv: list[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="host", description="Commands on a database host of the lab.")
    parser.add_argument("command", choices=("status", "version", *COMMANDS))
    parser.add_argument("target", choices=layout.NODES)
    parser.add_argument("upstream", choices=layout.NODES, nargs="?")
    arguments = parser.parse_args(argv)
    node, upstream = arguments.target, arguments.upstream
    needs_upstream = arguments.command in ("rewind", "copy")
    if needs_upstream != (upstream is not None) or node == upstream:
        wants = "a target and another node as upstream" if needs_upstream else "only a target"
        parser.error(f"{arguments.command} takes {wants}")
    if (registry.home() / layout.site_of(node) / "unreachable").exists():
        print(f"host unreachable: {node} in {layout.site_of(node)}", file=sys.stderr)
        return 255
    try:
        if arguments.command == "status":
            _status(node)
            return 0
        if arguments.command == "version":
            _version(node)
            return 0
        with _lock(node):
            COMMANDS[arguments.command](node, upstream)
    except LabError as e:
        print(f"host: {e}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _lock(node: str) -> Iterator[None]:
    """One changing command at a time on a node: flock(2)."""
    with (database.place(node) / "host.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _process(node: str) -> registry.Process:
    process = registry.find(node)
    if process is None:
        raise LabError(f"{node} has no process record; start the lab with `lab.py up`")
    return process


def _status(node: str) -> None:
    process = registry.find(node)
    running = process is not None and registry.alive(process)
    document = {
        "running": running,
        "pid": process.pid if process is not None and running else None,
        "in_recovery_signal": (database.data(node) / "standby.signal").exists(),
    }
    print(json.dumps(document))


def _version(node: str) -> None:
    ran = subprocess.run([binaries.find("postgres"), "--version"], capture_output=True, text=True, check=False)
    installed = _output(ran, node).partition("(PostgreSQL) ")[2]
    process = registry.find(node)
    running = process is not None and registry.alive(process)
    # proc(5): the link of a program whose file was removed, as dpkg does when it puts a new one there, ends so
    replaced = (
        running and process is not None and str(Path(f"/proc/{process.pid}/exe").readlink()).endswith(" (deleted)")
    )
    print(json.dumps({"installed": installed, "replaced": replaced}))


def _start(node: str, _upstream: str | None = None) -> None:
    process = registry.find(node)
    if process is not None:
        if registry.alive(process):
            return
        # Backends of a killed server hold its shared memory for a moment, and a new one would refuse to start.
        registry.destroy(process)
        _unlock(node, process)
    _await(node, database.spawn(node))


def _await(node: str, process: registry.Process) -> None:
    """Wait until the server takes connections, or has ended. Raises LabError."""
    until = time.monotonic() + START_S
    probe = [binaries.find("pg_isready"), "-q", "-h", layout.node_host(node), "-p", str(layout.PG_PORT)]
    while subprocess.run(probe, check=False).returncode != 0:
        if registry.wait_gone(process, 0.03):
            raise LabError(f"{node} ended while starting; last lines of {process.log}:\n{_tail(process.log)}")
        if time.monotonic() > until:
            raise LabError(f"{node} takes no connections {START_S:.0f} s after its start; see {process.log}")


def _stop(node: str, _upstream: str | None = None) -> None:
    process = registry.find(node)
    if process is None or not registry.alive(process):
        return
    registry.kill(process, signal.SIGINT, group=False)  # fast shutdown; its standbys get everything first
    if not registry.wait_gone(process, STOP_S):
        raise LabError(f"{node} did not shut down within {STOP_S:.0f} s (hung?); use `host kill {node}`")
    registry.destroy(process)


def _kill(node: str, _upstream: str | None = None) -> None:
    process = registry.find(node)
    if process is not None:
        registry.destroy(process)
        _unlock(node, process)


def _unlock(node: str, process: registry.Process) -> None:
    """Remove the lock files of a server of which no process is left.

    PostgreSQL takes a lock file as held while its process id exists, and a killed process exists as a zombie until
    its parent, which need not be init here, asks for its status.
    """
    place = database.place(node)
    for lock in (place / "data" / "postmaster.pid", place / f".s.PGSQL.{layout.PG_PORT}.lock"):
        with contextlib.suppress(FileNotFoundError):
            if lock.read_text(encoding="utf-8").split("\n", 1)[0] == str(process.pid):
                lock.unlink()


def _stopped(node: str) -> None:
    process = _process(node)
    if registry.members(process):
        raise LabError(f"{node} is running; stop or kill it first")
    _unlock(node, process)


def _primary(upstream: str) -> None:
    """Raises LabError unless ``upstream`` answers as a primary now: rewinding against anything else loses data."""
    if _query(upstream, "SELECT pg_is_in_recovery()") != "f":
        raise LabError(f"upstream {upstream} is not a primary; name the current primary")


def _rewind(node: str, upstream: str | None) -> None:
    assert upstream is not None  # noqa: S101  main has checked it
    _stopped(node)
    _primary(upstream)
    # The new timeline is in the source's control file only after a checkpoint, and pg_rewind reads it from there.
    _query(upstream, "CHECKPOINT")
    site = layout.site_of(node)
    source = f"host={layout.node_host(upstream, seen_from=site)} port={layout.PG_PORT} user=relight dbname=postgres"
    argv = [
        *(binaries.find("pg_rewind"), "--target-pgdata", str(database.data(node)), "--source-server", source),
        *("--config-file", str(database.place(node) / "postgresql.conf")),
    ]
    _run(node, argv)
    _restart_as_standby(node, upstream)


def _copy(node: str, upstream: str | None) -> None:
    assert upstream is not None  # noqa: S101  main has checked it
    _stopped(node)
    _primary(upstream)
    site = layout.site_of(node)
    new, data, old = (database.place(node) / name for name in ("data.new", "data", "data.old"))
    if old.exists() and not data.exists():  # an earlier copy was killed between its two renames
        old.rename(data)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    host = layout.node_host(upstream, seen_from=site)
    argv = [
        *(binaries.find("pg_basebackup"), "-D", str(new), "-h", host, "-p", str(layout.PG_PORT), "-U", "replicator"),
        *("-w", "-X", "stream", "-c", "fast"),
    ]
    _run(node, argv)
    data.rename(old)
    new.rename(data)
    _restart_as_standby(node, upstream)
    shutil.rmtree(old, ignore_errors=True)


def _restart_as_standby(node: str, upstream: str) -> None:
    database.follow(node, upstream)
    # A slot that the node had as a primary is gone after a rewind; the upstream must hold one for it.
    _slots(upstream, (node,))
    _start(node)
    _slots(node, database.upstreams(node))


def _slots(node: str, others: Sequence[str]) -> None:
    for name in map(layout.slot, others):
        _query(
            node,
            f"SELECT pg_create_physical_replication_slot('{name}') "  # noqa: S608  names are from layout.NODES
            f"WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{name}')",
            user="replicator",
        )


def _query(node: str, statement: str, user: str = "relight") -> str:
    """The one value that ``statement`` gives at ``node``. Raises LabError."""
    argv = [
        *(binaries.find("psql"), "-XAtqw", "-v", "ON_ERROR_STOP=1", "-h", layout.node_host(node)),
        *("-p", str(layout.PG_PORT), "-U", user, "-d", "postgres", "-c", statement),
    ]
    env = {**database.environment(layout.site_of(node)), "PGCONNECT_TIMEOUT": "3", "PATH": os.defpath}
    try:
        return _output(
            subprocess.run(argv, capture_output=True, text=True, check=False, env=env, timeout=START_S), node
        )
    except subprocess.TimeoutExpired as e:
        raise LabError(f"{node}: no answer to {statement!r} within {START_S:.0f} s") from e


def _run(node: str, argv: list[str]) -> None:
    """Run a PostgreSQL program as the user that owns the data. Raises LabError with what it said."""
    user = layout.account()
    group = pwd.getpwnam(user).pw_gid if user else None
    env = {
        **database.environment(layout.site_of(node)),
        "PGCONNECT_TIMEOUT": "3",
        "PATH": os.defpath,
        "PGAPPNAME": node,
    }
    place = database.place(node)
    ran = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        env=env,
        user=user,
        group=group,
        extra_groups=[] if user else None,
        cwd=place,
    )
    _output(ran, node)


def _output(ran: subprocess.CompletedProcess[str], node: str) -> str:
    if ran.returncode != 0:
        said = re.sub(r"\s+", " ", (ran.stderr or ran.stdout).strip())[-1500:]
        raise LabError(f"{node}: {ran.args[0]} ended with status {ran.returncode}: {said}")
    return ran.stdout.strip()


def _tail(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123  a str
        return "".join(f"    {line}" for line in lines.readlines()[-8:])


COMMANDS: dict[str, Callable[[str, str | None], None]] = {
    "start": _start,
    "stop": _stop,
    "kill": _kill,
    "rewind": _rewind,
    "copy": _copy,
}


if __name__ == "__main__":
    sys.exit(main())
