"""A Prefect for many machines, as ``deployments/compose`` has it, and two machines that work for it, on 127.0.11.x.

PostgreSQL, Redis, two API servers without services, the services, and HAProxy before the API. A machine is a PID and a
UTS namespace of its own (unshare(1)): its first process killed, all of it is gone at once, as in a power failure; and
no process of another machine can tell whether one of it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from patience import until

PG, REDIS, PROXY = ("127.0.11.10", 5432), ("127.0.11.11", 6379), ("127.0.11.12", 4200)
APIS = {"api1": ("127.0.11.21", 4200), "api2": ("127.0.11.22", 4200)}
BIN = Path(sys.executable).parent
PG_BIN = "/usr/lib/postgresql/15/bin"
POOL = "recovery"
ROOT = Path(__file__).resolve().parents[2]

HAPROXY = """
global
  stats socket {folder}/haproxy/admin.sock mode 600 level admin
  stats timeout 30s
defaults
  mode http
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  timeout check 10s
  option redispatch
  retries 3
frontend prefect
  bind {proxy}
  default_backend api
backend api
  option httpchk GET /api/health
  http-check expect status 200
  default-server check inter 300ms fall 2 rise 1 on-marked-down shutdown-sessions
  server api1 {api1}
  server api2 {api2}
frontend west
  bind 127.0.11.31:8080
  http-request return status 200
frontend east
  bind 127.0.11.32:8080
  http-request return status 200
backend app
  default-server check inter 200ms fall 1 rise 1
  server west-app1 127.0.11.31:8080
  server east-app1 127.0.11.32:8080
backend admin
  default-server check inter 200ms fall 1 rise 1
  server west-admin1 127.0.11.31:8080
  server east-admin1 127.0.11.32:8080
"""
MACHINE = """
hostname {name} || exit 1
{bin}/relight serve --no-receiver --system {system} >>{folder}/serve.log 2>&1 &
{bin}/prefect worker start --pool {pool} --type process --name {name} >>{folder}/worker.log 2>&1 &
wait
"""


def need(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:{PG_BIN}")
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    return found


@dataclass
class Plant:
    """The servers. ``processes``: by name; each is the leader of a session of its own."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    data: Path | None = None

    @property
    def url(self) -> str:
        return f"http://{PROXY[0]}:{PROXY[1]}/api"

    def env(self) -> dict[str, str]:
        """Of every server of Prefect's; the same as in ``deployments/compose/compose.yaml``."""
        redis = f"redis://{REDIS[0]}:{REDIS[1]}"
        return {
            **os.environ,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://postgres@{PG[0]}:{PG[1]}/prefect",
            "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
            "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_URL": f"{redis}/0",
            "PREFECT_SERVER_DOCKET_URL": f"{redis}/1",
            # of two that make the block types of an empty database at once, the second fails and ends
            "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_API_URL": self.url,
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_HOME": str(self.folder / "prefect"),
            "DO_NOT_TRACK": "1",
        }

    def start(self) -> None:
        self._postgresql()
        self._run(
            "redis",
            need("redis-server"), "--bind", REDIS[0], "--port", str(REDIS[1]), "--save", "", "--appendonly", "no",
        )  # fmt: skip
        self.prefect("server", "database", "upgrade", "-y")
        for name in APIS:
            self.api(name)
        self._run("services", str(BIN / "prefect"), "server", "services", "start")
        self._haproxy()
        until(lambda: all(self.healthy(f"http://{h}:{p}/api") for h, p in APIS.values()), 150, "both APIs answer")
        until(lambda: self.healthy(self.url), 20, "the API answers through HAProxy")

    def api(self, name: str) -> None:
        """Start one API server."""
        host, port = APIS[name]
        self._run(name, str(BIN / "prefect"), "server", "start", "--no-services", "--host", host, "--port", str(port))

    def _postgresql(self) -> None:
        # not below pytest's folder, which only its own user may enter
        data, account = Path(tempfile.mkdtemp(prefix="relight-pg-")), "postgres" if os.geteuid() == 0 else None
        self.data = data
        if account:
            shutil.chown(data, account, account)
        who: dict[str, Any] = (
            {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": []} if account else {}
        )
        argv = [need("initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--locale=C.UTF-8", "-N"]
        subprocess.run(argv, check=True, capture_output=True, cwd="/", **who)
        options = ("listen_addresses", PG[0]), ("unix_socket_directories", ""), ("fsync", "off"), ("port", str(PG[1]))
        settings = [word for k, v in (*options, ("max_connections", "120")) for word in ("-c", f"{k}={v}")]
        # all the world is trusted but the role of the leases, whose password is tested with it
        hba = "host all relight all scram-sha-256\nhost all all all trust\n"
        (data / "pg_hba.conf").write_text(hba)
        self._run("pg", need("postgres"), "-D", str(data), *settings, cwd="/", **who)
        until(lambda: self.sql("SELECT 1") == [(1,)], 30, "PostgreSQL answers")
        self.sql("CREATE DATABASE prefect")
        (self.folder / "lease_password").write_text("it's a \\ secret\n")
        where = {"PGHOST": PG[0], "PGPORT": str(PG[1]), "POSTGRES_USER": "postgres"}
        env = {**os.environ, **where, "LEASE_PASSWORD_FILE": str(self.folder / "lease_password")}
        subprocess.run(["sh", ROOT / "deployments" / "compose" / "lease-database.sh"], env=env, check=True, timeout=120)

    def sql(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        where = f"host={PG[0]} port={PG[1]} user=postgres dbname={database} connect_timeout=30"
        with psycopg.connect(where, autocommit=True) as connection:
            answer = connection.execute(statement)
            return answer.fetchall() if answer.description else []

    def _haproxy(self) -> None:
        (self.folder / "haproxy").mkdir()
        at = {name: f"{host}:{port}" for name, (host, port) in {**APIS, "proxy": PROXY}.items()}
        file = self.folder / "haproxy" / "haproxy.cfg"
        file.write_text(HAPROXY.format(folder=self.folder, **at))
        self._run("haproxy", need("haproxy"), "-W", "-db", "-f", str(file))

    def haproxy(self, command: str) -> None:
        """Commands of its runtime API, separated by ``;``."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(30)
            s.connect(str(self.folder / "haproxy" / "admin.sock"))
            s.sendall(command.encode() + b"\n")
            answer = s.recv(4096).decode().strip()
        assert not answer, answer

    def _run(self, name: str, *argv: str, **options: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv, stdout=log, stderr=log, start_new_session=True, env=self.env(), **options
            )

    def prefect(self, *words: str, **env: str) -> None:
        done = subprocess.run(
            [BIN / "prefect", *words], env={**self.env(), **env}, cwd=ROOT, capture_output=True, text=True, timeout=400,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, name: str) -> None:
        """kill -9 it, with what it started."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)
        if self.data is not None:
            shutil.rmtree(self.data, ignore_errors=True)

    @staticmethod
    def healthy(url: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health", timeout=30).status_code == 200
        return False

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Through HAProxy, and asked again where a server died meanwhile: for what may be asked twice."""

        def once() -> Any:
            found = httpx.request(method, f"{self.url}/{path}", json=body, timeout=30)
            assert found.status_code < 400 or found.status_code >= 500, f"{path}: {found.status_code} {found.text}"
            found.raise_for_status()
            return (found.json(),)

        return until(once, 30, path)[0]


@dataclass
class Machine:
    """One site's: ``relight serve`` and a worker of the pool, with a state folder of their own."""

    name: str
    folder: Path
    plant: Plant
    system: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        script = MACHINE.format(name=self.name, bin=BIN, system=self.system, folder=self.folder, pool=POOL)
        env = {
            **os.environ,
            "RELIGHT_STATE": str(self.folder / "state"),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.plant.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "3",
            "DO_NOT_TRACK": "1",
        }
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        own = [need("unshare"), *as_root, "--pid", "--fork", "--kill-child=KILL", "--uts", "--mount-proc"]
        with (self.folder / "init.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*own, "sh", "-c", script], env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """Process id -> command line, of everything that runs on it."""
        mark = f"RELIGHT_STATE={self.folder / 'state'}".encode()
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def kill_worker(self) -> None:
        """kill -9 the worker, and nothing else."""
        found = self.processes().items()
        (pid,) = [p for p, words in found if "prefect worker start" in words and "hostname" not in words]
        os.kill(pid, signal.SIGKILL)

    def kill_serve(self) -> None:
        """kill -9 ``relight serve``; what it keeps up goes with it."""
        found = self.processes().items()
        (pid,) = [p for p, words in found if "relight serve" in words and "hostname" not in words]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not any("standby" in words for words in self.processes().values()), 10, "nobody watches")

    def kill(self) -> None:
        """As a power failure: everything, at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        until(lambda: not self.processes(), 20, f"nothing of {self.name} runs")

    def log(self, name: str = "serve") -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / f"{name}.log").read_text(errors="replace")
        return ""

    def runs(self, system: str) -> dict[str, list[dict[str, Any]]]:
        """Run id -> records, as far as they are whole, oldest first."""
        found = sorted((self.folder / "state" / "runs").glob(f"*-{system}-*/journal.jsonl"))
        return {p.parent.name: [json.loads(line) for line in p.read_bytes().split(b"\n")[:-1]] for p in found}
