"""The four PostgreSQL nodes: configuration outside the data directory, one template that all four are copied from.

The template is a primary that was set up and shut down in order; a copy of it with ``standby.signal`` is a
standby of any other copy (PostgreSQL 15 manual, 27.2 "Log-Shipping Standby Servers"), so no base backup is needed.
"""

from __future__ import annotations

import hashlib
import inspect
import pwd
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import binaries
import probes
import psycopg
import registry
from layout import (
    DATABASE,
    HERE,
    NODES,
    PG_PORT,
    Options,
    Part,
    account,
    folder,
    give,
    node_host,
    other,
    secret,
    site_of,
    slot,
    write,
)
from mirror import mirror
from psycopg import sql

SCHEMA_FILE = HERE / "app" / "schema.sql"
Connect = Callable[[str], psycopg.Connection[tuple[object, ...]]]
"""Database name -> a connection of the superuser."""
SYNCHRONOUS = {"west": 'FIRST 1 ("east-pg1")', "east": 'FIRST 1 ("west-pg1")'}

SETTINGS = """\
# Written by the lab. It is outside the data directory so that pg_rewind and pg_basebackup leave it alone.
cluster_name = '{node}'
data_directory = '{data}'
hba_file = '{place}/pg_hba.conf'
ident_file = '{place}/pg_ident.conf'
listen_addresses = '{host}'
port = 5432
unix_socket_directories = '{place}'
max_connections = 250
superuser_reserved_connections = 5
shared_buffers = 32MB
min_wal_size = 32MB
max_wal_size = 256MB
wal_level = replica
wal_log_hints = on
full_page_writes = on
fsync = on
hot_standby = on
hot_standby_feedback = off
max_wal_senders = 12
max_replication_slots = 12
max_slot_wal_keep_size = 256MB
wal_keep_size = 64MB
wal_sender_timeout = 3s
wal_receiver_timeout = 3s
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 200ms
synchronous_standby_names = '{synchronous}'
password_encryption = scram-sha-256
tcp_keepalives_idle = 2
tcp_keepalives_interval = 1
tcp_keepalives_count = 3
autovacuum_vacuum_threshold = 50
shared_preload_libraries = 'pg_stat_statements'
pg_stat_statements.track_planning = on
log_destination = stderr
log_line_prefix = '%m [%p] %q%u@%d/%a '
log_checkpoints = off
timezone = UTC
log_timezone = UTC
"""

HBA = """\
# Passwords only. The links carry from 127.x too, so every address is the same loopback net.
local all         all                scram-sha-256
host  replication replicator,relight 127.0.0.0/8 scram-sha-256
host  all         all                127.0.0.0/8 scram-sha-256
"""

# What relight may do, each for a reason; it is no superuser. pg_promote, pg_reload_conf and the file functions
# that pg_rewind reads through are for superusers until granted (manual 9.27, 9.28, pg_rewind "Notes"). Autovacuum
# settings, VACUUM and ANALYZE of a table are for its owner until PostgreSQL 17 has MAINTAIN: hence a member of app.
ROLES = """\
CREATE ROLE replicator LOGIN REPLICATION PASSWORD {replicator};
CREATE ROLE app LOGIN PASSWORD {app};
CREATE ROLE relight LOGIN REPLICATION PASSWORD {relight};
CREATE ROLE exporter LOGIN CONNECTION LIMIT 5 PASSWORD {exporter};
GRANT pg_monitor TO exporter;
GRANT pg_monitor, pg_read_all_stats, pg_signal_backend, pg_checkpoint TO relight;
GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only, synchronous_standby_names, primary_conninfo,
  primary_slot_name, recovery_min_apply_delay TO relight;
GRANT app TO relight;
CREATE DATABASE {database} OWNER app;
"""

GRANTS = """\
GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf(), pg_wal_replay_pause(),
  pg_wal_replay_resume(), pg_switch_wal(), pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
  pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean),
  pg_control_system(), pg_control_checkpoint(), pg_control_recovery() TO relight;
"""

SCHEMA = """\
CREATE EXTENSION pg_stat_statements;
CREATE EXTENSION pgstattuple;
ALTER TABLE events OWNER TO app;
GRANT SELECT, INSERT, DELETE ON events TO relight;
CREATE TABLE relight_probe (id int PRIMARY KEY, nonce text, at timestamptz DEFAULT now());
ALTER TABLE relight_probe OWNER TO relight;
GRANT SELECT ON relight_probe TO app;
"""


def place(node: str) -> Path:
    """Folder of a node: its configuration, sockets, and ``data``."""
    return registry.home() / site_of(node) / node


def data(node: str) -> Path:
    """Data directory of a node."""
    return place(node) / "data"


def passfile(site: str) -> Path:
    """Password file of a site's database hosts (libpq, 34.16)."""
    return registry.home() / site / "pgpass"


def conninfo(node: str, upstream: str) -> str:
    """``primary_conninfo`` by which ``node`` follows ``upstream``, through the link to the other site; no password."""
    return (
        f"host={node_host(upstream, seen_from=site_of(node))} port={PG_PORT} user=replicator "
        f"application_name={node} passfile={passfile(site_of(node))} connect_timeout=2 "
        "keepalives_idle=2 keepalives_interval=1 keepalives_count=3"
    )


def follow(node: str, upstream: str) -> None:
    """Make a stopped node's directory a standby of ``upstream``. What was set by ALTER SYSTEM before is dropped:
    a fence or a synchronous setting that the upstream's copy carries is not this node's.
    """
    settings = f"primary_conninfo = '{conninfo(node, upstream)}'\nprimary_slot_name = '{slot(node)}'\n"
    write(data(node) / "postgresql.auto.conf", settings, 0o600, handed=True)
    write(data(node) / "standby.signal", "", 0o600, handed=True)


def environment(site: str) -> dict[str, str]:
    """Where libpq finds the password when a setting written later names none."""
    return {"PGPASSFILE": str(passfile(site)), "LC_ALL": "C.UTF-8"}


def argv(node: str) -> tuple[str, ...]:
    """Command line of a node, in the foreground."""
    return (binaries.find("postgres"), "-D", str(data(node)), "-c", f"config_file={place(node)}/postgresql.conf")


def spawn(node: str) -> registry.Process:
    """Start a node as its on-disk state says."""
    site = site_of(node)
    return registry.start(node, site, argv(node), env=environment(site), user=account(), cwd=data(node))


def configure(options: Options) -> None:
    """Write everything of the nodes that is not data."""
    for site in ("west", "east"):
        folder(site)
        lines = "".join(f"*:*:*:{user}:{secret(user)}\n" for user in ("replicator", "relight"))
        write(passfile(site), lines, 0o600, handed=True)
    for node in NODES:
        settings(node, place(node), SYNCHRONOUS[site_of(node)] if options.synchronous else "")


def settings(node: str, at: Path, synchronous: str = "", host: str | None = None) -> None:
    """Write the configuration of a server in the folder ``at``."""
    folder(*at.relative_to(registry.home()).parts)
    give(at, 0o711)  # its owner creates the socket in it
    text = SETTINGS.format(
        node=node,
        place=at,
        data=at / "data",
        host=node_host(node) if host is None else host,
        synchronous=synchronous,
    )
    write(at / "postgresql.conf", text)
    write(at / "pg_hba.conf", HBA)
    write(at / "pg_ident.conf", "")


def parts(template: Path) -> list[Part]:
    """The four nodes: west-pg1 the primary, the others its standbys."""
    return [
        Part(
            name=node,
            site=site_of(node),
            argv=argv(node),
            listens=(f"{node_host(node)}:{PG_PORT}",),
            prepare=partial(_copy, template, node),
            ready=partial(probes.node, node),
            env=environment(site_of(node)),
            user=account(),
            cwd=data(node),
        )
        for node in NODES
    ]


def clone(template: Path, node: str) -> None:
    """The data directory of ``node`` is a copy of the template."""
    if data(node).exists():
        mirror(template, data(node))
    else:
        subprocess.run(["cp", "-a", "--reflink=auto", str(template), str(data(node))], check=True)


def _copy(template: Path, node: str) -> None:
    clone(template, node)
    shutil.rmtree(data(node) / "pg_replslot" / slot(node))  # a slot for itself would only hold WAL back
    if node != "west-pg1":
        follow(node, "west-pg1")


def template() -> Path:
    """The cached data directory that all nodes start from, made when version, settings or secrets are new."""
    return made("template", ("postgres", "relight", "replicator", "app", "exporter"), _fill)


def made(name: str, passwords: Sequence[str], fill: Callable[[Connect], None]) -> Path:
    """Data directory ``NAME/KEY/data``: by initdb and ``fill``, cached until what it is made of changes.

    ``passwords``: names of the secrets in it, the superuser's first.
    """
    version = subprocess.run([binaries.find("postgres"), "--version"], check=True, capture_output=True, text=True)
    sources = "\0".join(Path(f).read_text(encoding="utf-8") for f in (__file__, inspect.getfile(fill), SCHEMA_FILE))
    words = "".join(secret(of) for of in passwords)
    key = hashlib.sha256(f"{version.stdout}\0{words}\0{sources}".encode()).hexdigest()[:16]
    at = registry.home() / name / key
    if not (at / "complete").exists():
        shutil.rmtree(at.parent, ignore_errors=True)
        _build(at, name, passwords[0], fill)
        write(at / "complete", "")
    return at / "data"


def _build(at: Path, name: str, superuser: str, fill: Callable[[Connect], None]) -> None:
    folder(*at.relative_to(registry.home()).parts)
    settings(name, at, host="")  # no TCP: only its own Unix socket
    pwfile = write(at / "pwfile", secret(superuser) + "\n", 0o600, handed=True)
    initdb = [binaries.find("initdb"), "-D", str(at / "data"), "-U", "postgres", "--pwfile", str(pwfile)]
    options = ["--wal-segsize=4", "--data-checksums", "-E", "UTF8", "--locale=C.UTF-8", "-A", "scram-sha-256", "-N"]
    user = account()
    group = pwd.getpwnam(user).pw_gid if user else None
    ran = subprocess.run(
        [*initdb, *options], capture_output=True, text=True, check=False, cwd=at, user=user, group=group
    )
    pwfile.unlink()
    if ran.returncode != 0:
        raise registry.LabError(f"initdb failed with status {ran.returncode}: {ran.stderr.strip()}")
    # Only the copied directory is used from now on; what initdb wrote as configuration in it is not.
    server = registry.start(
        name,
        "ops",
        (binaries.find("postgres"), "-D", str(at / "data"), "-c", f"config_file={at}/postgresql.conf"),
        env={"LC_ALL": "C.UTF-8"},
        user=account(),
        cwd=at / "data",
    )
    try:
        fill(partial(_connect, at, server, superuser))
    finally:
        registry.stop(server, 10, signal=2)  # SIGINT: fast shutdown, with its checkpoint
        registry.forget(server)


def _connect(
    at: Path, server: registry.Process, superuser: str, database: str
) -> psycopg.Connection[tuple[object, ...]]:
    """As soon as it answers. Raises LabError when it has ended."""
    while True:
        try:
            return psycopg.connect(
                host=str(at), dbname=database, user="postgres", password=secret(superuser), autocommit=True
            )
        except psycopg.OperationalError as e:
            if registry.wait_gone(server, 0.02):
                raise registry.LabError(f"PostgreSQL for the {server.name} ended: {e}; see {server.log}") from e


def _fill(connect: Connect) -> None:
    names = {user: sql.Literal(secret(user)) for user in ("replicator", "app", "relight", "exporter")}
    with connect("postgres") as admin:
        for statement in ROLES.split(";\n"):
            if statement:
                admin.execute(sql.SQL(statement).format(database=sql.Identifier(DATABASE), **names))
        for node in NODES:
            admin.execute("SELECT pg_create_physical_replication_slot(%s)", (slot(node),))
        admin.execute(GRANTS)  # pg_rewind connects to this database
    with connect(DATABASE) as admin:
        admin.execute(SCHEMA_FILE.read_text(encoding="utf-8"))
        admin.execute(SCHEMA + GRANTS)


def upstreams(node: str) -> tuple[str, ...]:
    """Every node that ``node`` could follow."""
    return tuple(n for n in NODES if n != node)


def expected_standbys(options: Options) -> dict[str, str]:
    """application_name -> sync_state of the standbys of west-pg1 after ``up``."""
    names = upstreams("west-pg1")
    chosen = f"{other('west')}-pg1" if options.synchronous else ""
    return {name: "sync" if name == chosen else "async" for name in names}
