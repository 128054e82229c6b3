"""Where everything is: sites, nodes, addresses, folders, secrets; the address plan of ``runbooks/lab/system.yaml``."""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import registry

HERE = Path(__file__).resolve().parent
SITES = ("west", "east")
STAGING = "staging"
"""No site: what runs there has a database of its own, and nothing of production knows it."""
NODES = ("west-pg1", "west-pg2", "east-pg1", "east-pg2")
SECRETS = (
    *("postgres", "relight", "replicator", "app", "tsig", "s3_access", "s3_secret", "alerts", "exporter"),
    *("staging_postgres", "staging_app"),  # so that a server of staging could not write to production by mistake
)
APPS = range(1, 11)
DATABASE = "venue"
ZONE = "venue.test."
PG_PORT = 5432


@dataclass(frozen=True)
class Options:
    """What a lab was asked to be; an ``up`` with others restarts it."""

    synchronous: bool = True
    monitoring: bool = True
    prefect: bool = False


@dataclass(frozen=True)
class Part:
    """One process that ``up`` starts.

    Attributes:
        name: process name, also of its log.
        site: ``west``, ``east``, ``staging`` or ``ops``.
        argv: command line.
        listens: ``host:port`` (TCP) or ``udp:host:port`` that must be free before.
        prepare: blocking work before the start (copying data), run in a thread.
        ready: raises OSError, LabError or NotReady until the process answers for real.
        env: environment beside the base of ``registry.start``.
        user: run as; None is the caller.
        cwd: working directory; the lab folder when None.
        after: the part that must be ready before this one starts.
    """

    name: str
    site: str
    argv: tuple[str, ...]
    listens: tuple[str, ...]
    ready: Callable[[], Awaitable[None]]
    prepare: Callable[[], None] = lambda: None
    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: Path | None = None
    after: str = ""


class NotReady(Exception):
    """The process answers, but not yet with what is wanted; the message says what it said."""


def net(site: str) -> str:
    """First three octets of the addresses of a site, of staging, and of what belongs to neither."""
    return {"west": "127.0.1", "east": "127.0.2", "ops": "127.0.3", STAGING: "127.0.4"}[site]


def site_of(name: str) -> str:
    """``west`` of ``west-pg1``."""
    return name.partition("-")[0]


def other(site: str) -> str:
    """The other site."""
    return "east" if site == "west" else "west"


def node_host(node: str, seen_from: str | None = None) -> str:
    """Address of a database node; through the link where ``seen_from`` is the other site."""
    site, _, rest = node.partition("-pg")
    if seen_from is None or seen_from == site:
        return f"{net(site)}.3{rest}"
    return f"{net(seen_from)}.13{rest}"


def slot(node: str) -> str:
    """Name of the physical replication slot of ``node``: slot names allow no dash."""
    return node.replace("-", "_")


def folder(*parts: str, mode: int = 0o711) -> Path:
    """A folder below the lab's, created, owned by the caller."""
    path = registry.home().joinpath(*parts)
    for one in (*reversed([p for p in path.parents if registry.home() in p.parents]), path):
        one.mkdir(mode=mode, exist_ok=True)
    return path


def fresh(*parts: str) -> Path:
    """The same, emptied first."""
    shutil.rmtree(registry.home().joinpath(*parts), ignore_errors=True)
    return folder(*parts)


def account() -> str | None:
    """User for what refuses to run as root: ``postgres``, else ``nobody``; None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise registry.LabError("PostgreSQL refuses to run as root and there is no user postgres or nobody; create one")


def give(path: Path, mode: int) -> None:
    """Set the mode and, as root, hand the path to ``account()``."""
    path.chmod(mode)
    if (user := account()) is not None:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)


def write(path: Path, text: str, mode: int = 0o644, *, handed: bool = False) -> Path:
    """Write a file that never exists with a wider mode than ``mode``; ``handed`` gives it to ``account()``."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as out:
        out.write(text)
    if handed:
        give(path, mode)
    return path


def make_secrets() -> None:
    """Random secrets, once a lab folder; the TSIG key is 32 bytes in base64 (RFC 8945), the others URL-safe text."""
    into = folder("secrets", mode=0o700)
    for name in SECRETS:
        if not (into / name).exists():
            value = base64.b64encode(secrets.token_bytes(32)).decode() if name == "tsig" else secrets.token_urlsafe(24)
            write(into / name, value + "\n", 0o600)


def secret(name: str) -> str:
    """Value of a secret of this lab. Raises LabError when ``up`` has not made it."""
    path = registry.home() / "secrets" / name
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as e:
        raise registry.LabError(f"secret {path}: {e.strerror}; run `lab.py up` first") from e
