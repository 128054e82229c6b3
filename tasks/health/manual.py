"""What a client sees, by hand."""

from __future__ import annotations

import shlex
from typing import Any

from tasks.contract import Context
from tasks.errors import BadInput
from tasks.manual import Command, Manual, NoManual
from tasks.zones.protocol import Zone

Answer = list[Command | NoManual]


async def verify(action: Any, ctx: Context) -> Answer:
    """Readiness by the public name, connected to where it points or shall point."""
    host, port = action.public_name.rstrip("."), action.port
    address = action.address
    if action.zone and action.site:
        zone: Zone = ctx.component(action.zone, Zone)
        try:
            address = zone.wanted(action.public_name, "A", ctx.site(action.site)).targets[0]
        except BadInput:
            address = None
    url = f"http://{host}:{port}{action.ready_path}"
    words = ["curl", "--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}\\n"]
    if address:
        line = shlex.join([*words, "--connect-to", f"{host}:{port}:{address}:{port}", url])
    elif action.resolver:
        at, _, asked = action.resolver.rpartition(":")
        look = shlex.join(["dig", "+short", f"@{at}", "-p", asked, action.public_name, "A"])
        line = shlex.join([*words, "--connect-to"]) + f' "{host}:{port}:$({look} | head -1):{port}" {shlex.quote(url)}'
    else:
        line = shlex.join([*words, url])
    return [Command(line, "200", "Then write through the application as a user does: only a write proves it.")]


async def http(action: Any, _ctx: Context) -> Answer:
    """Curl."""
    words = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}\\n", action.url]
    return [Command(shlex.join(words), str(action.status))]


MANUAL: dict[str, Manual] = {"health.verify": verify, "health.http": http}
