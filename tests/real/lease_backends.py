"""Real places for a lease, each behind a link that can be cut or lose what comes back."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import dns.query
import dns.tsigkeyring
import dns.update
import pytest

from tasks import catalog
from tasks.contract import Surroundings

sys.path.insert(0, str(Path(__file__).parent))
from patience import until
from pg_cluster import PORT, Cluster

STORE = ("127.0.9.80", 9000)
LINK = ("127.0.9.90", 9001)
DNS = ("127.0.0.1", 5393)  # BIND listens only on addresses that an interface carries
SECRET = base64.b64encode(b"k" * 32).decode()


def need(program: str) -> str:
    found = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin")
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    return found


def listening(where: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(where, 0.2):
        return True
    return False


class Link:
    """A TCP proxy to ``target``. ``lose_after``: from the next request for which it says so, no answer comes back."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.lose_after: Callable[[bytes], bool] | None = None
        self.lost = 0
        self._server: socket.socket | None = None
        self._open: list[socket.socket] = []

    def start(self) -> None:
        self._server = socket.create_server(LINK)
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def cut(self) -> None:
        """Refuses connections, and ends those that are open."""
        if self._server is not None:
            self._server.shutdown(socket.SHUT_RDWR)
            self._server.close()
            self._server = None
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                upstream = socket.create_connection(self.target, 30)
                upstream.settimeout(None)  # an answer may take as long as it takes
                self._open += [client, upstream]
                deaf = threading.Event()
                threading.Thread(target=self._forward, args=(client, upstream, deaf), daemon=True).start()
                threading.Thread(target=self._back, args=(upstream, client, deaf), daemon=True).start()

    def _forward(self, client: socket.socket, upstream: socket.socket, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.lose_after is not None and self.lose_after(data):
                    self.lose_after = None
                    self.lost += 1
                    deaf.set()
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_WR)

    def _back(self, upstream: socket.socket, client: socket.socket, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := upstream.recv(65536):
                if not deaf.is_set():
                    client.sendall(data)
            client.shutdown(socket.SHUT_WR)


class Backend:
    """A real store behind a link. ``store()``: a provider as a system file would make it; ``fresh`` forgets all."""

    name = ""
    aged = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.link: Link

    def settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def fresh(self) -> None:
        raise NotImplementedError

    def writes(self, data: bytes) -> bool:
        """``data`` is a request that writes the lease."""
        raise NotImplementedError

    def scribble(self, text: str) -> None:
        """Somebody else writes over the record."""
        raise NotImplementedError

    def forbidden(self) -> Any:
        """A provider without the right to write."""
        raise NotImplementedError

    def store(self, **more: Any) -> Any:
        cls = catalog.provider(self.name)
        around = Surroundings("toy", "lease", ("west", "east"), None, lambda _name: None)  # type: ignore[arg-type]
        return cls(cls.Settings.model_validate({**self.settings(), **more}), around)


class Postgres(Backend):
    name = "leases.postgresql"

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.link = Link(("127.0.8.31", PORT))
        (folder / "pg").write_text("relight-secret\n")
        with cluster.admin("west-pg1") as admin:
            admin.execute("CREATE DATABASE leases OWNER relight")

    def settings(self) -> dict[str, Any]:
        address = f"{LINK[0]}:{LINK[1]}"
        where = {"address": address, "database": "leases", "password": f"file:{self.folder}/pg", "sslmode": "disable"}
        return {**where, "connect_timeout": "2s", "query_timeout": "2s", "ttl": "6s"}

    def fresh(self) -> None:
        with self.cluster.admin("west-pg1", dbname="leases") as admin:
            admin.execute("DROP TABLE IF EXISTS relight_lease")

    def scribble(self, text: str) -> None:
        with self.cluster.admin("west-pg1", dbname="leases") as admin:
            admin.execute("UPDATE relight_lease SET record = %s", (text,))

    def forbidden(self) -> Any:
        return self.store(database="postgres")  # nobody but its owner may make tables there

    def writes(self, data: bytes) -> bool:
        return b'INSERT INTO "relight_lease"' in data or b'UPDATE "relight_lease"' in data


class S3(Backend):
    name = "leases.s3"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for key in ("access", "secret"):
            (folder / key).write_text("keykey\n")
        self.client = boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://{STORE[0]}:{STORE[1]}",
            region_name="us-east-1",
            aws_access_key_id="keykey",
            aws_secret_access_key="keykey",
        )
        self.link = Link(STORE)

    def settings(self) -> dict[str, Any]:
        keys = {"access_key": f"file:{self.folder}/access", "secret_key": f"file:{self.folder}/secret"}
        return {"endpoint": f"http://{LINK[0]}:{LINK[1]}", "bucket": "leases", **keys, "timeout": "2s", "ttl": "6s"}

    def fresh(self) -> None:
        if "leases" in {b["Name"] for b in self.client.list_buckets()["Buckets"]}:
            for found in self.client.list_objects_v2(Bucket="leases").get("Contents", ()):
                self.client.delete_object(Bucket="leases", Key=found["Key"])
        else:
            self.client.create_bucket(Bucket="leases")

    def scribble(self, text: str) -> None:
        self.client.put_object(Bucket="leases", Key="relight/lease/toy", Body=text.encode())

    def forbidden(self) -> Any:
        return self.store(bucket="no-such-bucket")  # this server knows no permissions

    def writes(self, data: bytes) -> bool:
        return data.startswith(b"PUT /leases/relight/lease/toy HTTP")


class Zone(Backend):
    name = "leases.rfc2136"
    aged = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "tsig").write_text(SECRET + "\n")
        self.link = Link(DNS)

    def settings(self) -> dict[str, Any]:
        key = {"key_name": "relight-test.", "key_secret": f"file:{self.folder}/tsig"}
        return {"zone": "venue.test.", "primary": f"{LINK[0]}:{LINK[1]}", **key, "timeout": "2s", "ttl": "6s"}

    def fresh(self) -> None:
        self._update(lambda update: update.delete("_relight-lease-toy", "TXT"))

    def scribble(self, text: str) -> None:
        self._update(lambda update: update.replace("_relight-lease-toy", 1, "TXT", f'"{text}"'))

    def forbidden(self) -> Any:
        return self.store(name="elsewhere.venue.test.")

    def _update(self, change: Callable[[dns.update.UpdateMessage], None]) -> None:
        keyring = dns.tsigkeyring.from_text({"relight-test.": SECRET})
        update = dns.update.UpdateMessage("venue.test.", keyring=keyring, keyalgorithm="hmac-sha256")
        change(update)
        assert dns.query.tcp(update, DNS[0], port=DNS[1], timeout=30).rcode() == 0

    def writes(self, data: bytes) -> bool:
        """Opcode 5 (UPDATE) in the header, which follows two bytes of length."""
        return len(data) > 4 and (data[4] >> 3) & 0xF == 5


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    with Cluster() as cluster:
        backend = Postgres(folder, cluster)
        yield backend


MOTO = f"""
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple("{STORE[0]}", {STORE[1]}, DomainDispatcherApplication(create_backend_app), threaded=False)
"""
"""moto's server, one request at a time: it looks and writes in two steps, which S3 itself does in one."""


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[S3]:
    need("moto_server")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", MOTO], stdout=log, stderr=log)
    try:
        until(lambda: listening(STORE))
        backend = S3(folder)
        yield backend
        backend.client.close()
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def zone(folder: Path) -> Iterator[Zone]:
    (folder / "zone").write_text(
        "$TTL 60\n@ IN SOA ns root 10 3600 600 86400 1\n  IN NS ns\nns IN A 127.0.0.1\n", encoding="ascii"
    )
    (folder / "named.conf").write_text(f"""
options {{
  directory "{folder}"; listen-on port {DNS[1]} {{ {DNS[0]}; }}; listen-on-v6 {{ none; }};
  lock-file none; pid-file none; session-keyfile none; recursion no; notify no;
}};
controls {{ }};
key "relight-test." {{ algorithm hmac-sha256; secret "{SECRET}"; }};
zone "venue.test" {{ type primary; file "{folder}/zone";
  update-policy {{ grant relight-test. name _relight-lease-toy.venue.test. TXT; }}; }};
""")
    with (folder / "log").open("wb") as log:
        argv = [need("named"), "-g", "-n", "1", "-c", str(folder / "named.conf")]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        until(lambda: listening(DNS))
        backend = Zone(folder)
        yield backend
    finally:
        process.terminate()
        process.wait(60)
