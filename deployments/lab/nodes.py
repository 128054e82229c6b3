"""The database nodes of the lab, as the system file names them, and which of them is the primary right now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import registry
from ruamel.yaml import YAML

SYSTEM = Path(__file__).resolve().parents[2] / "runbooks" / "lab" / "system.yaml"


@dataclass(frozen=True)
class Node:
    """A database node: its name is that of its process in the registry."""

    name: str
    site: str
    host: str
    port: int


def nodes(system: Path = SYSTEM) -> tuple[Node, ...]:
    """Every node of ``components.database.nodes``, in the order of the file."""
    document: dict[str, Any] = YAML(typ="safe").load(system)
    found = []
    for name, settings in document["components"]["database"]["nodes"].items():
        host, _, port = settings["address"].rpartition(":")
        found.append(Node(name, settings["site"], host, int(port)))
    return tuple(found)


def connect(node: Node, user: str = "app", timeout_s: int = 2) -> psycopg.Connection[tuple[Any, ...]]:
    """An autocommit connection to the node itself, never through a pooler. Raises psycopg.OperationalError."""
    password = (registry.home() / "secrets" / user).read_text(encoding="utf-8").strip()
    return psycopg.connect(
        host=node.host,
        port=node.port,
        dbname="venue",
        user=user,
        password=password,
        connect_timeout=timeout_s,
        options="-c statement_timeout=5s",
        autocommit=True,
    )


def is_primary(node: Node) -> bool | None:
    """True for a primary, False for a replica, None for a node that does not answer within 2 s."""
    try:
        with connect(node) as connection:
            row = connection.execute("SELECT NOT pg_is_in_recovery()").fetchone()
    except psycopg.OperationalError:
        return None
    return bool(row and row[0])


def primary(among: tuple[Node, ...] | None = None) -> Node:
    """The one primary. Raises LabError when none answers as one, or two do: then nothing can be said."""
    known = among or nodes()
    with ThreadPoolExecutor(len(known)) as threads:
        answers = dict(zip(known, threads.map(is_primary, known), strict=True))
    primaries = [node for node, answer in answers.items() if answer]
    if len(primaries) == 1:
        return primaries[0]
    seen = ", ".join(f"{n.name} {({True: 'primary', False: 'replica', None: 'silent'})[a]}" for n, a in answers.items())
    raise registry.LabError(f"expected one primary among the lab's database nodes, found {len(primaries)}: {seen}")
