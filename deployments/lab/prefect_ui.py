"""The Prefect server, for those who want runs in its UI. Its home and SQLite database outlive ``down``."""

from __future__ import annotations

from functools import partial

import binaries
import probes
from layout import Part, folder

ADDRESS = "127.0.3.42:4200"


def part() -> Part:
    """``prefect server start``, telling nobody and drawing on nothing outside this machine."""
    host, _, port = ADDRESS.rpartition(":")
    home = folder("prefect", mode=0o700)
    return Part(
        name="prefect",
        site="ops",
        argv=(binaries.find("prefect"), "server", "start", "--host", host, "--port", port),
        listens=(ADDRESS,),
        ready=partial(probes.http_ok, ADDRESS, "/api/health", b"true"),
        env={
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
            "PREFECT_SERVER_API_HOST": host,
            "PREFECT_SERVER_API_PORT": port,
            "PREFECT_SERVER_UI_API_URL": f"http://{ADDRESS}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        },
        cwd=home,
    )
