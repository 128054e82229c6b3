"""Staging: an environment of its own, on 127.0.4.x, where a release is met first.

One application server of two behind a HAProxy, and a PostgreSQL server with an initdb and passwords of its own. Nothing
of production knows it: it is in no balancer, no name, no replication and no metrics (the alerts ask whether any server
is up, or can write: one of staging would answer for production). It belongs to no site, and faults do not touch it.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import binaries
import database
import nodes
import probes
import registry
import traffic
from layout import DATABASE, PG_PORT, STAGING, NotReady, Part, account, fresh, net, node_host, secret, write
from psycopg import sql

NODE = f"{STAGING}-pg1"
FRONT = f"{net(STAGING)}.10:8080"
APPS = (1, 2)
"""The second one is started by an update, so that the first can be drained."""

# After the nodes' own settings, so that these count: nobody can follow it (PostgreSQL manual, 20.5.1 wal_level: WAL of
# level minimal cannot be streamed), and it waits for nobody.
SETTINGS = """\
wal_level = minimal
max_wal_senders = 0
max_replication_slots = 0
"""

HBA = """\
host all all 127.0.0.0/8 scram-sha-256
"""


def template() -> Path:
    """The cached data directory: the application's schema and its user, and none of production's roles."""
    return database.made("staging-template", ("staging_postgres", "staging_app"), _fill)


def _fill(connect: database.Connect) -> None:
    with connect("postgres") as admin:
        password, name = sql.Literal(secret("staging_app")), sql.Identifier(DATABASE)
        admin.execute(sql.SQL("CREATE ROLE app LOGIN PASSWORD {}").format(password))
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER app").format(name))
    with connect(DATABASE) as admin:
        admin.execute(database.SCHEMA_FILE.read_bytes())
        admin.execute("ALTER TABLE events OWNER TO app")


def parts(made: Path | None) -> list[Part]:
    """Database (where there is a template of it), balancer, and supervisord with one application server."""
    env = {
        "SITE": STAGING,
        "PORT": "3000",
        "PGHOST": node_host(NODE),
        "PGPORT": str(PG_PORT),
        "PGDATABASE": DATABASE,
        "PGUSER": "app",
        "PGPASSWORD_FILE": str(registry.home() / "secrets" / "staging_app"),
        "NODE_ENV": "production",
    }
    return [*([_database(made)] if made else []), _haproxy(), traffic.supervisor(STAGING, APPS, APPS[:1], env)]


def _database(made: Path) -> Part:
    at = database.place(NODE)
    database.settings(NODE, at)
    with (at / "postgresql.conf").open("a", encoding="utf-8") as more:
        more.write(SETTINGS)
    write(at / "pg_hba.conf", HBA)
    return Part(
        name=NODE,
        site=STAGING,
        argv=database.argv(NODE),
        listens=(f"{node_host(NODE)}:{PG_PORT}",),
        prepare=partial(database.clone, made, NODE),
        ready=answers,
        env={"LC_ALL": "C.UTF-8"},
        user=account(),
        cwd=database.data(NODE),
    )


def _haproxy() -> Part:
    place, here = fresh(STAGING, "haproxy"), net(STAGING)
    apps = "\n".join(f"    server {STAGING}-app{n} {here}.{20 + n}:3000 check" for n in APPS)
    text = (traffic.HAPROXY_APP + traffic.HAPROXY_METRICS).format(place=place, net=here, apps=apps)
    write(place / "haproxy.cfg", text)
    write(place / "state", "")
    return Part(
        name=f"{STAGING}-haproxy",
        site=STAGING,
        argv=traffic.haproxy_argv(STAGING),
        listens=(FRONT, f"{here}.10:8404"),
        ready=partial(probes.http_ok, f"{here}.10:8404", "/metrics", b"haproxy_process"),
    )


def take_schema() -> str:
    """Staging's tables become those of production, empty; the name of the primary that was asked. Raises LabError.

    All or nothing (psql(1), ``--single-transaction``); what relight keeps for itself is left out.
    """
    node = nodes.primary()
    words = ["pg_dump", "--schema-only", "--clean", "--if-exists", "--no-owner", "--no-privileges"]
    dump = _client([*words, "-t", "public.*", "-T", "public.relight_*"], node.host, "app")
    _client(["psql", "-Xqw", "-v", "ON_ERROR_STOP=1", "-1"], node_host(NODE), "staging_app", dump)
    return node.name


def _client(words: list[str], host: str, password_of: str, given: str = "") -> str:
    """What a PostgreSQL program says, as user app. Raises LabError with what it complained of."""
    env = {
        "PATH": os.defpath,
        "PGPASSWORD": secret(password_of),
        "PGCONNECT_TIMEOUT": "3",
        "PGOPTIONS": "-c lock_timeout=5s",
    }
    where = ["-h", host, "-p", str(PG_PORT), "-U", "app", "-d", DATABASE]
    argv = [binaries.find(words[0]), *words[1:], *where]
    ran = subprocess.run(argv, input=given, capture_output=True, text=True, check=False, env=env, timeout=60)
    if ran.returncode != 0:
        raise registry.LabError(f"{words[0]} at {host} ended with status {ran.returncode}: {ran.stderr.strip()[-500:]}")
    return ran.stdout


async def answers() -> None:
    """Its database takes writes."""
    asked = "SELECT pg_is_in_recovery()"
    if await probes.sql(node_host(NODE), PG_PORT, asked, "app", password_of="staging_app") != [(False,)]:  # noqa: S106  a secret's name
        raise NotReady(f"{NODE} is in recovery")


async def serves() -> None:
    """Whoever comes in by the front door is served by staging, with its database."""
    await probes.http_ok(FRONT, "/readyz", f'"site":"{STAGING}"'.encode())
