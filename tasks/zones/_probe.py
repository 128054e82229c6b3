"""Is what a name would be pointed at alive right now? ``tcp:5432``, ``http:8080/readyz``, ``https:443/readyz``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from tasks.errors import Unreachable
from tasks.network import Ask, Network

_PROBE = re.compile(r"(?:tcp:(\d{1,5})|(https?):(\d{1,5})(/\S*))", re.ASCII)


@dataclass(frozen=True)
class Health:
    """One address, one look. ``why`` says what was found where it is not ``healthy``."""

    address: str
    healthy: bool
    why: str = ""


def _check(text: str) -> str:
    match = _PROBE.fullmatch(text)
    if not match or not 0 < int(match[1] or match[3]) < 65536:
        raise ValueError(f"expected tcp:PORT, http:PORT/PATH or https:PORT/PATH, got {text!r}")
    return text


ProbeText = Annotated[str, AfterValidator(_check)]


async def probe(network: Network, text: str, address: str, name: str, timeout_s: float) -> Health:
    """Look at ``address`` as a client of ``name`` would: its Host header, its TLS server name and certificate.

    HTTP needs a 2xx status. Bounded by ``timeout_s``; never raises for what does not answer.
    """
    match = _PROBE.fullmatch(text)
    assert match is not None, text  # noqa: S101 - ProbeText was checked when the runbook was loaded
    try:
        if match[1]:
            await network.tcp(f"{address}:{match[1]}", within_s=timeout_s)
            return Health(address, healthy=True)
        literal = f"[{address}]" if ":" in address else address.rstrip(".")
        url = f"{match[2]}://{literal}:{match[3]}{match[4]}"
        answer = await network.http(Ask("GET", url, name.rstrip(".")), within_s=timeout_s)
    except Unreachable as e:
        return Health(address, healthy=False, why=f"{text}: {e.message}")
    why = "" if answer.good else f"{text}: HTTP {answer.status}, expected 2xx"
    return Health(address, healthy=answer.good, why=why)
