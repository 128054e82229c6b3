"""Which Prefect server relight uses: the one that is configured, else its own below the state folder.

Its own is a process that ``relight serve`` keeps up (``flows.server``). It holds a lock for as long as it lives, and
what its file says is believed only while the lock is held: a file cannot outlive its process that way.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from flows.engine import alive, places
from tasks.errors import BadInput

HOST = "127.0.0.1"
PORT = 4200
PORTS = 100
"""How many ports are tried from the first on, where nobody asked for one."""
LOCK = "server.lock"
FILE = "server.json"
LOG = "server.log"
SCHEMA = "schema-*.sql"


def configured() -> str:
    """The API that somebody configured: ``PREFECT_API_URL``, a ``prefect.toml`` here, the active profile; else empty.

    The order is Prefect's own (docs.prefect.io, "Settings and profiles"). Read here without importing Prefect, which
    takes over a second.
    """
    env = os.environ.get("PREFECT_API_URL", "")
    return (env or _toml_url(_toml(Path("prefect.toml"))) or _profile_url()).rstrip("/")


def _profile_url() -> str:
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    found = _toml(Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser())
    profiles = found.get("profiles")
    name = os.environ.get("PREFECT_PROFILE") or found.get("active")
    profile = profiles.get(name) if isinstance(profiles, dict) and isinstance(name, str) else None
    url = profile.get("PREFECT_API_URL") if isinstance(profile, dict) else None
    return url if isinstance(url, str) else ""


def _toml_url(found: Mapping[str, object]) -> str:
    api = found.get("api")
    url = api.get("url") if isinstance(api, dict) else None
    return url if isinstance(url, str) else ""


def _toml(file: Path) -> dict[str, object]:
    # a file that Prefect cannot read either is its own error to report
    with contextlib.suppress(OSError, ValueError):
        return tomllib.loads(file.read_text(encoding="utf-8"))
    return {}


def home() -> Path:
    """The folder of relight's own server: its database, its log, its lock."""
    return places.state_home() / "prefect"


def running() -> str:
    """The API of relight's own server, where one lives; else empty."""
    if not alive.alive(home(), LOCK):
        return ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((home() / FILE).read_text(encoding="utf-8"))["api"])
    return ""


def adopt() -> str:
    """The API to use, if any; this process and what it starts take it from ``PREFECT_API_URL`` from now on."""
    url = configured()
    if not url:
        url = running()
        if url:
            quick(os.environ)
    if url:
        os.environ["PREFECT_API_URL"] = url
    return url


def quick(env: os._Environ[str] | dict[str, str]) -> None:
    """Settings of Prefect's client for a server that is ours: no calls that it does not need."""
    env.setdefault("PREFECT_CLIENT_CSRF_SUPPORT_ENABLED", "false")
    env.setdefault("PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED", "false")
    env.setdefault("DO_NOT_TRACK", "1")


def url_of(port: int) -> str:
    """The API of relight's own server on ``port``."""
    return f"http://{HOST}:{port}/api"


def port_for(asked: int | None) -> int:
    """The port of relight's own server: the one that another ``relight serve`` of this folder uses, else a free one.

    ``asked``: this one and no other. Raises BadInput where it is taken, or none of the first hundred is free.
    """
    ours = running()
    if ours:
        return int(ours.removesuffix("/api").rpartition(":")[2])
    for port in [asked] if asked is not None else range(PORT, PORT + PORTS):
        if _free(port):
            return port
    if asked is not None:
        raise BadInput(f"--prefect-port {asked}: {HOST}:{asked} is taken by another process; choose another port")
    raise BadInput(f"no free port for Prefect's server at {HOST} from {PORT} to {PORT + PORTS - 1}; say --prefect-port")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself: not what merely closes down
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def command(port: int) -> list[str]:
    """How relight's own server is started."""
    return [sys.executable, "-P", "-c", f"from flows import server; server.main({port})"]


def settings(folder: Path, port: int) -> dict[str, str]:
    """The environment of relight's own server: its own folder and database, loopback, no analytics."""
    return {
        "PREFECT_HOME": str(folder),
        "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": url_of(port),
        "PREFECT_UI_STATIC_DIRECTORY": str(folder / "ui"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }


def prepare(folder: Path) -> None:
    """Make the database where there is none: the empty one of the oldest Prefect that relight takes.

    Prefect's own start migrates it further where Prefect is newer. Without it, a hundred migrations take five seconds.
    """
    database = folder / "prefect.db"
    if database.exists():
        return
    found = sorted((places.data("deployments") / "prefect").glob(SCHEMA))
    if not found:
        return  # Prefect's own migrations do it, later
    new = folder / "prefect.db.new"
    new.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(new)) as made:
        made.executescript(found[0].read_text(encoding="utf-8"))
    new.replace(database)


def note(folder: Path, port: int) -> None:
    """Say where the server answers. Raises OSError."""
    new = folder / f"{FILE}.new"
    new.write_text(json.dumps({"api": url_of(port), "pid": os.getpid()}) + "\n", encoding="utf-8")
    new.replace(folder / FILE)
