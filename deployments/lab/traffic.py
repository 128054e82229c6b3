"""Load balancers, connection poolers and application servers of both sites."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import binaries
import probes
import registry
import releases
from layout import (
    APPS,
    DATABASE,
    HERE,
    NODES,
    PG_PORT,
    SITES,
    NotReady,
    Part,
    account,
    folder,
    fresh,
    give,
    net,
    node_host,
    other,
    secret,
    write,
)

# HAProxy 2.6 configuration manual: 3.1 server-state-file, 4.2 load-server-state-from-file, retry-on, redispatch,
# 5.2 on-marked-down. A request is only tried again where the connection was never made, so no POST is doubled.
HAPROXY_APP = """\
global
    stats socket {place}/admin.sock mode 600 level admin expose-fd listeners
    stats timeout 1h
    server-state-file {place}/state
    hard-stop-after 10s
    maxconn 4000
    nbthread 1
    log stdout format raw local0 notice

defaults
    log global
    load-server-state-from-file global
    timeout connect 500ms
    timeout check 1s
    timeout queue 1s
    default-server weight 100 inter 500ms fastinter 100ms fall 2 rise 1

frontend app
    mode http
    bind {net}.10:8080
    timeout client 30s
    timeout http-request 5s
    timeout http-keep-alive 30s
    default_backend app

backend app
    mode http
    balance roundrobin
    timeout server 5s
    retries 2
    retry-on conn-failure
    option redispatch 1
    # Not /readyz: when the database they share is away, every server would be taken out at once, and a pause for
    # a planned switchover would become an outage. Whether a site serves its clients is what relight asks /readyz.
    option httpchk GET /healthz
    http-check expect status 200
{apps}
"""

HAPROXY_DB = """
frontend db
    mode tcp
    bind {net}.10:5433
    timeout client 1h
    default_backend db

# The check is an SSLRequest (PostgreSQL manual, 55.7), answered by one byte: a hung server accepts connections but
# does not answer, and nothing is written to its log.
backend db
    mode tcp
    timeout server 1h
    option tcp-check
    tcp-check send-binary 0000000804d2162f
    tcp-check expect binary 4e
{nodes}
"""

HAPROXY_METRICS = """
frontend metrics
    mode http
    bind {net}.10:8404
    timeout client 10s
    http-request use-service prometheus-exporter if {{ path /metrics }}
    stats enable
    stats uri /
"""

# PgBouncer 1.18 config manual.
PGBOUNCER = """\
[databases]
{database} = host={net}.10 port=5433

[pgbouncer]
listen_addr = {net}.15
listen_port = 6432
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {place}/users
admin_users = relight
pool_mode = transaction
min_pool_size = 20
default_pool_size = 100
max_db_connections = 100
max_client_conn = 1000
server_connect_timeout = 1
server_login_retry = 1
query_wait_timeout = 5
server_check_delay = 5
tcp_keepalive = 1
tcp_keepidle = 2
tcp_keepintvl = 1
tcp_keepcnt = 3
log_connections = 0
log_disconnections = 0
log_stats = 0
"""

SUPERVISOR = """\
[supervisord]
nodaemon = true
logfile = {place}/supervisord.log
logfile_maxbytes = 0
pidfile = {place}/supervisord.pid
childlogdir = {place}
{user}
[unix_http_server]
file = {site_folder}/supervisor.sock
chmod = 0600

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[group:app]
programs = {names}
"""

# startsecs 0: RUNNING means spawned; whether it serves is what /readyz says.
PROGRAM = """
[program:app{n}]
command = {node} {server}
environment = HOST="{net}.{host}",NAME="{site}-app{n}"
autostart = {autostart}
autorestart = false
startsecs = 0
stopwaitsecs = 3
killasgroup = true
redirect_stderr = true
stdout_logfile = {logs}/{site}-app{n}.log
stdout_logfile_maxbytes = 0
"""


def parts() -> list[Part]:
    """HAProxy, PgBouncer and supervisord with two application servers, in each site."""
    return [make(site) for site in SITES for make in (_haproxy, _pgbouncer, _supervisor)]


def _haproxy(site: str) -> Part:
    place = fresh(site, "haproxy")
    here = net(site)
    apps = [
        f"    server {where}-app{n} {net(where)}.{20 + n}:3000 check" + (" disabled" if where != site else "")
        for where in (site, other(site))
        for n in APPS
    ]
    nodes = [
        f"    server {node} {node_host(node, seen_from=site)}:{PG_PORT} check on-marked-down shutdown-sessions"
        + (" disabled" if node != "west-pg1" else "")
        for node in NODES
    ]
    texts = (HAPROXY_APP, HAPROXY_DB, HAPROXY_METRICS)
    text = "".join(texts).format(place=place, net=here, apps="\n".join(apps), nodes="\n".join(nodes))
    write(place / "haproxy.cfg", text)
    write(place / "state", "")
    return Part(
        name=f"{site}-haproxy",
        site=site,
        argv=haproxy_argv(site),
        listens=(f"{here}.10:8080", f"{here}.10:5433", f"{here}.10:8404"),
        ready=partial(probes.http_ok, f"{here}.10:8404", "/metrics", b"haproxy_process"),
    )


def haproxy_argv(site: str) -> tuple[str, ...]:
    """Command line of a site's HAProxy, in the foreground."""
    return (binaries.find("haproxy"), "-db", "-f", str(registry.home() / site / "haproxy" / "haproxy.cfg"))


def _pgbouncer(site: str) -> Part:
    place = fresh(site, "pgbouncer")
    give(place, 0o700)
    ini = PGBOUNCER.format(place=place, net=net(site), database=DATABASE)
    write(place / "pgbouncer.ini", ini, 0o600, handed=True)
    # Plain passwords, because PgBouncer logs in to the server with them by SCRAM (config manual, auth_file).
    users = "".join(f'"{user}" "{secret(user)}"\n' for user in ("app", "relight"))
    write(place / "users", users, 0o600, handed=True)

    async def ready() -> None:
        await probes.sql(f"{net(site)}.15", 6432, "SHOW VERSION", user="relight", database="pgbouncer")

    return Part(
        name=f"{site}-pgbouncer",
        site=site,
        argv=(binaries.find("pgbouncer"), str(place / "pgbouncer.ini")),
        listens=(f"{net(site)}.15:6432",),
        ready=ready,
        user=account(),
    )


def _supervisor(site: str) -> Part:
    return supervisor(site, APPS, (1, 2), _app_environment(site))


def supervisor(site: str, apps: Sequence[int], started: Sequence[int], env: dict[str, str]) -> Part:
    """The supervisord of the application servers ``apps``, of which ``started`` run from the beginning."""
    place = fresh(site, "supervisor")
    home = registry.home()
    server = releases.link(site) / "server.js"
    text = SUPERVISOR.format(
        place=place,
        site_folder=home / site,
        user="user = root\n" if account() else "",
        names=",".join(f"app{n}" for n in apps),
    ) + "".join(
        PROGRAM.format(
            n=n,
            node=binaries.find("node"),
            server=server,
            net=net(site),
            host=20 + n,
            site=site,
            autostart="true" if n in started else "false",
            logs=folder("logs"),
        )
        for n in apps
    )
    config: Path = write(place / "supervisord.conf", text)

    async def ready() -> None:
        await probes.unix(home / site / "supervisor.sock")
        for n in started:
            await probes.http_ok(f"{net(site)}.{20 + n}:3000", "/healthz")

    return Part(
        name=f"{site}-supervisord",
        site=site,
        argv=(binaries.find("supervisord"), "-n", "-c", str(config)),
        listens=tuple(f"{net(site)}.{20 + n}:3000" for n in apps),
        ready=ready,
        env=env,
    )


def _app_environment(site: str) -> dict[str, str]:
    """What every application server of a site is told; each gets its HOST and NAME from supervisord."""
    return {
        "SITE": site,
        "PORT": "3000",
        "PGHOST": f"{net(site)}.15",
        "PGPORT": "6432",
        "PGDATABASE": DATABASE,
        "PGUSER": "app",
        "PGPASSWORD_FILE": str(registry.home() / "secrets" / "app"),
        "RELIGHT_NODES": json.dumps({n: f"{node_host(n, seen_from=site)}:{PG_PORT}" for n in NODES}),
        "S3_ENDPOINT": f"http://{net(site)}.80:9000",
        "S3_BUCKET": f"{DATABASE}-{site}",
        "NODE_ENV": "production",
    }


async def serves(site: str) -> None:
    """Both first application servers are UP in the site's own balancer, and it passes their readiness on."""
    _, body = await probes.http(f"{net(site)}.10:8404", "/;csv;norefresh")
    lines = [line.split(",") for line in body.decode().splitlines()]
    up = {row[1] for row in lines if row[0] == "app" and len(row) > 17 and row[17].startswith("UP")}
    if not {f"{site}-app1", f"{site}-app2"} <= up:
        raise NotReady(f"haproxy of {site}: servers UP are {sorted(up)}")
    await probes.http_ok(probes.haproxy(site), "/readyz", f'"site":"{site}"'.encode())


def links() -> Part:
    """The network between the sites, as one process."""

    async def ready() -> None:
        await probes.unix(registry.home() / "links.sock")

    return Part(
        name="links",
        site="ops",
        argv=(sys.executable, str(HERE / "links.py")),
        listens=(
            *(f"{net(site)}.13{n}:{PG_PORT}" for site in SITES for n in (1, 2)),
            *(f"{net(site)}.180:9000" for site in SITES),
        ),
        ready=ready,
    )
