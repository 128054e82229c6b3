"""The test ground for AWS: moto's server in a process of its own, spoken to over real HTTP.

A test asks for ``aws`` (fresh for each test) or ``moto`` (kept for the module) of ``conftest.py`` and builds its
provider as a system file would: endpoint and credentials come from the environment, as they do for users.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from hanging import hang
from patience import until

REGION, OTHER_REGION = "eu-west-1", "eu-central-1"
ACCOUNT = "123456789012"
"""moto's own account."""
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


def listening(where: tuple[str, int]) -> bool:
    """Something takes connections at ``where``."""
    with contextlib.suppress(OSError), socket.create_connection(where, 0.2):
        return True
    return False


def free_port(host: str = "127.0.0.1") -> int:
    """A port of ``host`` that nothing listens on."""
    with socket.create_server((host, 0)) as found:
        return int(found.getsockname()[1])


class Server:
    """A process that speaks HTTP. ``url`` is its root."""

    def __init__(self, argv: list[str], where: tuple[str, int], log: Path, env: dict[str, str] | None = None) -> None:
        self.where, self.url, self.log = where, f"http://{where[0]}:{where[1]}", log
        with log.open("ab") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, **(env or {})})

    def wait(self) -> None:
        """Until it takes connections."""

        def up() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            return listening(self.where)

        until(up)

    def post(self, path: str, body: bytes = b"") -> bytes:
        """What it answers to a POST, for the test's own controls."""
        answer = httpx.post(self.url + path, content=body, timeout=30)
        assert answer.is_success, answer.text
        return answer.content

    def hang(self) -> None:
        """Takes connections (the kernel does) and never answers."""
        hang(self.process.pid)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(60)


class Moto(Server):
    """moto's server. ``client`` is the test's own way in, for preparing and looking."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        binary = shutil.which("moto_server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if binary is None:
            reason = "moto_server is not installed (pip install 'moto[server]')"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        where = (host, free_port(host))
        super().__init__([str(binary), "-H", host, "-p", str(where[1])], where, folder / "moto.log", {**KEYS, **ALONE})
        self._clients: dict[tuple[str, str], Any] = {}

    def env(self) -> dict[str, str]:
        """What boto3 needs to find it, and nothing of this machine's own configuration."""
        return {**KEYS, **ALONE, "AWS_ENDPOINT_URL": self.url}

    def client(self, service: str, region: str = REGION) -> Any:
        """boto3's client, straight to moto. It tries again on its own: its work is the test's, not the provider's."""
        found = self._clients.get((service, region))
        if found is None:
            session = boto3.session.Session(
                aws_access_key_id="testing", aws_secret_access_key="testing", region_name=region
            )
            found = session.client(
                service,
                endpoint_url=self.url,
                config=Config(connect_timeout=30, read_timeout=60, retries={"mode": "standard"}),
            )
            self._clients[service, region] = found
        return found

    def reset(self) -> None:
        """Forgets everything that was made in it."""
        self.post("/moto-api/reset")

    def transition(self, model: str, after: int) -> None:
        """``model`` (``route53::hostedzone`` …) changes its state when it was looked at ``after`` times.

        See moto's documentation, *State Transitions*; not every service has them.
        """
        body = f'{{"model_name": "{model}", "transition": {{"progression": "manual", "times": {after}}}}}'
        self.post("/moto-api/state-manager/set-transition", body.encode())

    def stop(self) -> None:
        for client in self._clients.values():
            client.close()
        super().stop()


ALONE = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""No file and no metadata service of this machine has a say."""


@contextlib.contextmanager
def moto(folder: Path, host: str = "127.0.0.1") -> Iterator[Moto]:
    """A running server; the environment points boto3 at it for as long."""
    server = Moto(folder, host)
    try:
        server.wait()
        with pytest.MonkeyPatch.context() as patch:
            for name in [n for n in os.environ if n.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in server.env().items():
                patch.setenv(name, value)
            yield server
    finally:
        server.stop()
