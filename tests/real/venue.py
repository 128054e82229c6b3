"""A PostgreSQL of its own and the lab's application server on it, for the tests that need both."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import httpx
import psycopg
import pytest
from patience import until

APP = Path(__file__).resolve().parents[2] / "deployments" / "lab" / "app"
PG_HOST, PG_PORT = "127.0.9.31", 6931
APP_HOST, APP_PORT = "127.0.9.21", 6921
URL = f"http://{APP_HOST}:{APP_PORT}"
NOBODY_LISTENS = "127.0.9.33:6931"
NEVER_ANSWERS = ("127.0.9.34", 6931)


def need(program):
    found = shutil.which(program, path=f"/usr/lib/postgresql/15/bin:{os.environ['PATH']}")
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    return found


class Server:
    """One PostgreSQL server in a folder of its own, run as a user that it accepts."""

    def __init__(self, folder):
        self.data = folder / "data"
        self.who = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        password = folder / "password"
        password.write_text("admin\n")
        if self.who:
            shutil.chown(password, self.who.pw_uid)
            shutil.chown(folder, self.who.pw_uid, self.who.pw_gid)
        self.run(
            [need("initdb"), "-D", self.data, "-A", "scram-sha-256", "-U", "postgres", f"--pwfile={password}", "-N"]
        )
        with (self.data / "postgresql.auto.conf").open("a") as conf:
            conf.write(
                f"listen_addresses = '{PG_HOST}'\nport = {PG_PORT}\nunix_socket_directories = ''\nfsync = off\n"
                "cluster_name = 'west-pg1'\n"
            )
        self.process = None

    def run(self, argv):
        ids = {"user": self.who.pw_uid, "group": self.who.pw_gid, "extra_groups": []} if self.who else {}
        subprocess.run(argv, check=True, capture_output=True, cwd="/", **ids)

    def start(self):
        self.spawn()
        until(self.answers)

    def spawn(self):
        ids = {"user": self.who.pw_uid, "group": self.who.pw_gid, "extra_groups": []} if self.who else {}
        with (self.data.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [need("postgres"), "-D", self.data], stderr=log, stdout=log, cwd="/", start_new_session=True, **ids
            )

    def answers(self):
        if self.process.poll() is not None:
            self.spawn()  # it does not start while a child of a killed one is not wholly gone
        try:
            self.admin("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def admin(self, database="venue"):
        return psycopg.connect(
            host=PG_HOST, port=PG_PORT, user="postgres", password="admin", dbname=database, autocommit=True
        )

    def processes(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def signal(self, number):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):  # a child that ended meanwhile
                os.kill(pid, number)


@contextlib.contextmanager
def running_database():
    """A Server with the application's schema; ended at exit."""
    with tempfile.TemporaryDirectory(prefix="relight-app-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder))
        server.start()
        with server.admin("postgres") as admin:
            admin.execute("CREATE ROLE app LOGIN PASSWORD 'apppass'")
            admin.execute("CREATE DATABASE venue OWNER app")
        with server.admin() as admin:
            admin.execute((APP / "schema.sql").read_text())
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def running_app(database, folder):
    """The application server on an empty table, ready; killed at exit. Its nodes: one real, one dead, one hung."""
    if not (APP / "node_modules" / "pg").is_dir():
        subprocess.run([need("npm"), "ci", "--no-audit", "--no-fund"], cwd=APP, check=True, capture_output=True)
    if database.process.poll() is not None:
        database.start()
    with database.admin() as admin:
        admin.execute("TRUNCATE events")
    secret = folder / "app"
    secret.write_text("apppass\n")
    nodes = {
        "west-pg1": f"{PG_HOST}:{PG_PORT}",
        "west-pg2": NOBODY_LISTENS,
        "east-pg1": f"{NEVER_ANSWERS[0]}:{NEVER_ANSWERS[1]}",
    }
    env = {
        "PATH": os.environ["PATH"],
        "HOST": APP_HOST,
        "PORT": str(APP_PORT),
        "SITE": "west",
        "NAME": "west-app1",
        "PGHOST": PG_HOST,
        "PGPORT": str(PG_PORT),
        "PGDATABASE": "venue",
        "PGUSER": "app",
        "PGPASSWORD_FILE": str(secret),
        "RELIGHT_NODES": json.dumps(nodes),
    }
    with (folder / "app.log").open("ab") as log:
        process = subprocess.Popen([need("node"), "server.js"], cwd=APP, env=env, stdout=log, stderr=log)

    def serving():
        assert process.poll() is None, (folder / "app.log").read_text()
        try:
            return httpx.get(f"{URL}/readyz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(serving)
        yield process
    finally:
        process.kill()
        process.wait()
