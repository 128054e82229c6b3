"""Keeps a copy of a cluster alive for exactly as long as the process that asked for it; stdlib only.

    python -m tasks.migrations._guardian        first line of stdin: the request as JSON; then stdin stays open

When stdin ends, because whoever asked is done or was killed, the copy's server is killed and its folder removed. When
the guardian itself is killed, the kernel ends the server with it (prctl(2), PR_SET_PDEATHSIG), and the next guardian
removes the folder: its lock (flock(2)) is gone with the process. The copy takes connections on loopback only, with the
passwords of the original. Says on stdout, one JSON a line: ``{"ready": port, …}`` or ``{"error": text}``, ``{"gone"}``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

PREFIX = "relight-rehearsal-"
POLL_S = 0.05
SETTINGS = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
hba_file = '{folder}/pg_hba.conf'
ident_file = '{folder}/pg_ident.conf'
max_connections = 20
shared_buffers = 64MB
max_wal_senders = 0
wal_level = minimal
fsync = off
full_page_writes = off
autovacuum = off
archive_mode = off
synchronous_standby_names = ''
shared_preload_libraries = '{libraries}'
logging_collector = off
"""


class Ended(Exception):
    """Whoever asked is gone."""


def main() -> int:
    """See the module's text."""
    asked = json.loads(_line())
    parent = Path(asked["parent"])
    clear(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    server: subprocess.Popen[bytes] | None = None
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            began = time.monotonic()
            if asked["account"]:
                shutil.chown(folder, asked["account"], asked["account"])
            _copy(asked, folder)
            port = _prepare(asked, folder)
            server = _start(asked, folder, port)
            size = sum(f.stat().st_size for f in (folder / "data").rglob("*") if f.is_file())
            _say(ready=port, seconds=round(time.monotonic() - began, 3), bytes=size, folder=str(folder))
            while not _ended(POLL_S):
                if server.poll() is not None:
                    raise RuntimeError(f"the copy's server ended: {_tail(folder / 'server.log')}")
    except Ended:
        pass
    except (RuntimeError, OSError) as e:
        _say(error=str(e))
    finally:
        if server is not None:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)
        _say(gone=str(folder))
    return 0


def _line() -> bytes:
    """The first line of stdin, not a byte more: the rest is for select(2)."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def clear(parent: Path) -> None:
    """Remove the folders of guardians that are gone."""
    for left in abandoned(parent):
        shutil.rmtree(left, ignore_errors=True)


def abandoned(parent: Path) -> list[Path]:
    """Folders below ``parent`` whose guardian does not live."""
    found = []
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
                continue
            try:
                with (folder / "lock").open("r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                # made a moment ago, or half removed: young ones are left alone
                if time.time() - folder.stat().st_mtime < 60:
                    continue
            except BlockingIOError:
                continue
            found.append(folder)
    return found


def _copy(asked: dict[str, Any], folder: Path) -> None:
    words = {"hostname": asked["host"], "port": asked["port"], "user": asked["user"], "password": asked["password"]}
    line = ":".join(
        str(words.get(k, "*")).replace("\\", "\\\\").replace(":", "\\:")
        for k in ("hostname", "port", "database", "user", "password")
    )
    passfile = _write(asked, folder / "pgpass", line + "\n")
    argv = [f"{asked['bin']}/pg_basebackup", "-D", str(folder / "data"), "-h", asked["host"], "-p", str(asked["port"])]
    argv += ["-U", asked["user"], "-w", "-X", "stream", "-c", "fast"]
    argv += ["--max-rate", asked["rate"]] if asked["rate"] else []
    env = {"PGPASSFILE": str(passfile), "PGCONNECT_TIMEOUT": "5", "PGSSLMODE": asked["sslmode"], "PATH": os.defpath}
    log = folder / "copy.log"
    with log.open("wb") as out:
        process = _spawn(asked, argv, out, env, folder)
        try:
            while process.poll() is None:
                if _ended(POLL_S):
                    raise Ended
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            passfile.unlink()
    if process.returncode:
        raise RuntimeError(f"pg_basebackup ended with {process.returncode}: {_tail(log)}")


def _prepare(asked: dict[str, Any], folder: Path) -> int:
    """Nothing of the original's own settings may count: it would look for its primary, or its archive."""
    data = folder / "data"
    for name in ("standby.signal", "recovery.signal"):
        (data / name).unlink(missing_ok=True)
    _write(asked, data / "postgresql.auto.conf", "")
    _write(asked, folder / "pg_hba.conf", f'host all "{asked["login"]}" 127.0.0.1/32 scram-sha-256\n')
    _write(asked, folder / "pg_ident.conf", "")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    text = SETTINGS.format(port=port, folder=folder, libraries=asked["libraries"])
    _write(asked, folder / "postgresql.conf", text)
    return port


def _start(asked: dict[str, Any], folder: Path, port: int) -> subprocess.Popen[bytes]:
    argv = [f"{asked['bin']}/postgres", "-D", str(folder / "data"), "-c", f"config_file={folder}/postgresql.conf"]
    log = folder / "server.log"
    with log.open("wb") as out:
        server = _spawn(asked, argv, out, {"PATH": os.defpath}, folder)
    up = False
    try:
        while b"database system is ready to accept connections" not in log.read_bytes():
            if server.poll() is not None:
                raise RuntimeError(f"the copy does not start: {_tail(log)}")
            if _ended(POLL_S):
                raise Ended
        with socket.create_connection(("127.0.0.1", port), 5):
            up = True
        return server
    finally:
        if not up:
            server.kill()
            server.wait()


def _spawn(
    asked: dict[str, Any], argv: list[str], out: IO[bytes], env: dict[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    """As the servers' account. ``setpriv`` sets the death signal after the change of user, which clears it."""
    prefix = ["setpriv", "--pdeathsig", "KILL"]
    if asked["account"]:
        group = pwd.getpwnam(asked["account"]).pw_gid
        prefix += ["--reuid", asked["account"], "--regid", str(group), "--init-groups"]
    return subprocess.Popen(
        [*prefix, "--", *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=folder
    )


def _write(asked: dict[str, Any], path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    if asked["account"]:
        shutil.chown(path, asked["account"], asked["account"])
    path.write_text(text, encoding="utf-8")
    return path


def _ended(wait_s: float) -> bool:
    """Has stdin ended? Waits so long at most. What is written to it is not looked at."""
    ready, _, _ = select.select([0], [], [], wait_s)
    return bool(ready) and not os.read(0, 4096)


def _say(**document: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more; the work goes on all the same
        os.write(1, json.dumps(document).encode() + b"\n")


def _tail(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-600:]


if __name__ == "__main__":
    sys.exit(main())
