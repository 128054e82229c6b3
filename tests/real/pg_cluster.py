"""A small cluster of real PostgreSQL servers for tests: west-pg1 (primary), west-pg2 and east-pg1, on 127.0.8.x.

Each node listens on two addresses, so that it can be reached by two paths. The account ``relight`` has exactly the
grants that the provider needs. Everything lives in a temporary folder and ends by process id.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest
from patience import until

BIN = "/usr/lib/postgresql/15/bin"
PORT = 7431
NODES = {"west-pg1": ("west", 31), "west-pg2": ("west", 32), "east-pg1": ("east", 41)}

CONF = """
listen_addresses = '127.0.8.{n},127.0.8.1{n}'
port = {port}
unix_socket_directories = '{folder}/{node}'
cluster_name = '{node}'
shared_buffers = 16MB
max_connections = 40
wal_log_hints = on
fsync = off
wal_level = replica
max_wal_senders = 8
max_replication_slots = 8
wal_keep_size = 64MB
wal_receiver_status_interval = 1s
wal_receiver_timeout = 4s
wal_sender_timeout = 30s
wal_retrieve_retry_interval = 100ms
synchronous_standby_names = '{synchronous}'
"""
SETUP = """
CREATE ROLE replicator LOGIN REPLICATION PASSWORD 'replica-secret';
CREATE ROLE relight LOGIN REPLICATION PASSWORD 'relight-secret';
GRANT pg_monitor, pg_signal_backend, pg_checkpoint TO relight;
GRANT ALTER SYSTEM ON PARAMETER default_transaction_read_only, synchronous_standby_names, primary_conninfo,
  primary_slot_name TO relight;
GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_reload_conf(), pg_ls_dir(text, boolean, boolean),
  pg_stat_file(text, boolean), pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean),
  pg_control_system(), pg_control_checkpoint(), pg_control_recovery() TO relight;
CREATE TABLE relight_probe (id int PRIMARY KEY, nonce text, at timestamptz DEFAULT now());
ALTER TABLE relight_probe OWNER TO relight;
CREATE TABLE rows (n int PRIMARY KEY);
ALTER TABLE rows OWNER TO relight;
"""
HOST = """#!/bin/sh
# host COMMAND NODE [UPSTREAM-ADDRESS-OCTET]: as an operator would over ssh
cd {folder} || exit 1
data={folder}/$2/data
export PGPASSFILE={folder}/pgpass PGCONNECT_TIMEOUT=3 PATH={bin}:$PATH
as="setpriv --reuid=postgres --regid=postgres --init-groups"
run() {{ if [ "$(id -u)" = 0 ]; then $as "$@"; else "$@"; fi; }}
octet() {{ case $1 in west-pg1) echo 31;; west-pg2) echo 32;; east-pg1) echo 41;; esac; }}
pid=$(head -n 1 $data/postmaster.pid 2>/dev/null)
alive() {{ [ -n "$pid" ] && [ "$(readlink /proc/$pid/cwd)" = "$data" ]; }}
[ -e {folder}/unreachable ] && exit 255
standby() {{
  slot=$(echo $1 | tr - _)
  printf "primary_conninfo = '%s'\\nprimary_slot_name = '%s'\\n" \\
    "host=127.0.8.$(octet $2) port={port} user=replicator application_name=$1 passfile={folder}/pgpass" $slot \\
    > $data/postgresql.auto.conf
  cp $data/../postgresql.conf $data/ # rewind and copy bring the upstream's
  touch $data/standby.signal; chown --reference=$data $data/standby.signal $data/postgresql.auto.conf
  run pg_ctl -D $data -w -t 60 -l {folder}/$1/log start >&2
}}
case $1 in
status)
  signal=false; [ -e $data/standby.signal ] && signal=true
  running=false; if alive; then running=true; fi
  echo "{{\\"running\\": $running, \\"in_recovery_signal\\": $signal}}" ;;
start) alive || run pg_ctl -D $data -w -t 60 -l {folder}/$2/log start >&2 ;;
stop) alive || exit 0; run pg_ctl -D $data -m fast -w -t 10 stop >&2 ;;
kill)
  alive || exit 0
  all="$pid $(ps -o pid= --ppid $pid)"
  kill -9 $all
  # all of them: it is not started again while one of its children still has its memory
  for one in $all; do while [ "$(readlink /proc/$one/cwd)" = "$data" ]; do sleep 0.01; done; done
  rm -f $data/postmaster.pid $data/../.s.PGSQL.{port}.lock ;; # where nobody reaps the dead, their id looks alive
rewind)
  source="host=127.0.8.$(octet $3) port={port} user=relight dbname=postgres"
  psql -Xqw "$source" -c CHECKPOINT || exit 1
  run pg_rewind --target-pgdata $data --source-server "$source" >&2 || exit 1
  standby $2 $3 ;;
copy)
  run rm -rf $data.new
  run pg_basebackup -D $data.new -h 127.0.8.$(octet $3) -p {port} -U replicator -w -c fast >&2 || exit 1
  run rm -rf $data; run mv $data.new $data; standby $2 $3 ;;
esac
"""


def need(program: str) -> str:
    found = shutil.which(program, path=f"{BIN}:/usr/sbin:{os.environ['PATH']}")
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    return found


class Cluster:
    """Use as a context manager. ``synchronous`` is the primary's ``synchronous_standby_names``."""

    def __init__(self, synchronous: str = "") -> None:
        need("initdb")
        self.account = "postgres" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="relight-pg-"))
        self.synchronous = synchronous

    def __enter__(self):
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def _run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        group = pwd.getpwnam(self.account).pw_gid if self.account else None
        ran = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            user=self.account,
            group=group,
            extra_groups=[] if self.account else None,
        )
        assert not check or ran.returncode == 0, f"{argv}: {ran.stderr or ran.stdout}"
        return ran

    def _build(self) -> None:
        self._own(self.folder, 0o755)
        (self.folder / "pgpass").write_text("*:*:*:replicator:replica-secret\n*:*:*:relight:relight-secret\n")
        self._own(self.folder / "pgpass", 0o600)
        self.host = self.folder / "host"
        self.host.write_text(HOST.format(folder=self.folder, bin=BIN, port=PORT))
        self._own(self.host, 0o755)
        first = self._data("west-pg1")
        first.parent.mkdir()
        self._own(first.parent, 0o755)
        self._run(f"{BIN}/initdb", "-D", str(first), "-U", "postgres", "-A", "trust", "--locale=C.UTF-8", "-N")
        hba = "local all postgres trust\nhost replication replicator,relight 127.0.0.0/8 scram-sha-256\n"
        (first / "pg_hba.conf").write_text(hba + "host all relight 127.0.0.0/8 scram-sha-256\n")
        self._configure("west-pg1", "")
        self.command("start", "west-pg1")
        with self.admin("west-pg1") as admin:
            admin.execute(SETUP)
            for node in NODES:
                if node != "west-pg1":
                    admin.execute("SELECT pg_create_physical_replication_slot(%s)", (node.replace("-", "_"),))
        self.command("stop", "west-pg1")
        for node in NODES:
            if node != "west-pg1":
                (self.folder / node).mkdir()
                self._own(self.folder / node, 0o755)
                self._run("cp", "-a", str(first), str(self._data(node)))
                shutil.rmtree(self._data(node) / "pg_replslot")
                (self._data(node) / "pg_replslot").mkdir()
                self._own(self._data(node) / "pg_replslot", 0o700)
                self._standby(node)
            mirrored = 'FIRST 1 ("west-pg1")' if self.synchronous else ""
            self._configure(node, self.synchronous if node != "east-pg1" else mirrored)
        for node in NODES:
            self.command("start", node)
        until(lambda: len(self.query("west-pg1", "SELECT FROM pg_stat_replication WHERE state = 'streaming'")) == 2)

    def _standby(self, node: str) -> None:
        conninfo = f"host=127.0.8.31 port={PORT} user=replicator application_name={node} passfile={self.folder}/pgpass"
        text = f"primary_conninfo = '{conninfo}'\nprimary_slot_name = '{node.replace('-', '_')}'\n"
        for name, content in (("postgresql.auto.conf", text), ("standby.signal", "")):
            (self._data(node) / name).write_text(content)
            self._own(self._data(node) / name, 0o600)

    def _configure(self, node: str, synchronous: str) -> None:
        values = {"n": NODES[node][1], "port": PORT, "folder": self.folder, "node": node, "synchronous": synchronous}
        for folder in (self._data(node), self._data(node).parent):
            (folder / "postgresql.conf").write_text(CONF.format(**values))
            self._own(folder / "postgresql.conf", 0o600)

    def _own(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if self.account:
            shutil.chown(path, self.account, self.account)

    def _data(self, node: str) -> Path:
        return self.folder / node / "data"

    def command(self, *words: str) -> None:
        ran = subprocess.run([self.host, *words], capture_output=True, text=True, check=False, timeout=120)
        assert ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"

    def admin(self, node: str, **more):
        """A superuser's connection over the Unix socket; trust is for that one only."""
        return psycopg.connect(
            host=str(self.folder / node), port=PORT, user="postgres", autocommit=True, **{"dbname": "postgres", **more}
        )

    def query(self, node: str, statement: str, *values):
        with self.client(node) as connection:
            return connection.execute(statement, values or None).fetchall()

    def client(self, node: str):
        return psycopg.connect(
            host=f"127.0.8.{NODES[node][1]}",
            port=PORT,
            user="relight",
            password="relight-secret",
            dbname="postgres",
            autocommit=True,
            connect_timeout=30,
        )

    def pids(self, node: str) -> list[int]:
        """The postmaster and its children."""
        try:
            first = int((self._data(node) / "postmaster.pid").read_text().split("\n", 1)[0])
        except FileNotFoundError:
            return []
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(first)], capture_output=True, text=True)  # noqa: PLW1510
        return [first, *map(int, children.stdout.split())]

    def signal(self, node: str, number: int) -> None:
        for pid in self.pids(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def settings(self, **more):
        """As a system file has them. A test that hangs a server says shorter time-outs: the others must run into none,
        on a machine that stands still for seconds either.
        """
        sites = {"west": "east", "east": "west"}
        nodes = {
            name: {
                "site": site,
                "address": f"127.0.8.{n}:{PORT}",
                "from": {sites[site]: f"127.0.8.1{n}:{PORT}"},
            }
            for name, (site, n) in NODES.items()
        }
        base = {
            "database": "postgres",
            "user": "relight",
            "password": f"file:{self.folder}/relight",
            "connect_timeout": "5s",
            "query_timeout": "15s",
            "stale_after": "10s",
            "command_timeout": "120s",
            "hosts": "hosts",
            "synchronous": self.synchronous,
            "nodes": nodes,
        }
        (self.folder / "relight").write_text("relight-secret\n")
        return {**base, **more}

    def host_settings(self):
        words = {c: [str(self.host), c, "{target}"] for c in ("status", "start", "stop", "kill")}
        words |= {c: [str(self.host), c, "{target}", "{upstream}"] for c in ("rewind", "copy")}
        return {"commands": words, "targets": list(NODES)}

    def close(self) -> None:
        """Ends every process that works in a folder of this cluster, also in one that was moved away since."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
                if str((process / "cwd").readlink()).startswith(f"{self.folder}/"):
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
