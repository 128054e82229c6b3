"""Is what a name would be pointed at alive right now? ``tcp:5432``, ``http:8080/readyz``, ``https:443/readyz``."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Annotated

import httpx
from pydantic import AfterValidator

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


async def probe(text: str, address: str, name: str, timeout_s: float) -> Health:
    """Look at ``address`` as a client of ``name`` would: its Host header, its TLS server name and certificate.

    HTTP needs a 2xx status. Bounded by ``timeout_s``; never raises for what does not answer.
    """
    match = _PROBE.fullmatch(text)
    assert match is not None, text  # noqa: S101 - ProbeText was checked when the runbook was loaded
    try:
        async with asyncio.timeout(timeout_s):
            if match[1]:
                _, writer = await asyncio.open_connection(address, int(match[1]))
                writer.close()
                return Health(address, healthy=True)
            return await _http(match[2], address, int(match[3]), match[4], name.rstrip("."))
    except TimeoutError:
        return Health(address, healthy=False, why=f"{text}: no answer within {timeout_s:g} s")
    except (OSError, httpx.HTTPError) as e:
        return Health(address, healthy=False, why=f"{text}: {str(e) or type(e).__name__}")


async def _http(scheme: str, address: str, port: int, path: str, host: str) -> Health:
    literal = f"[{address}]" if ":" in address else address.rstrip(".")
    # A plain probe needs no trust store, and loading one takes longer than the probe itself.
    async with httpx.AsyncClient(verify=scheme == "https", trust_env=False, timeout=None) as client:  # noqa: S113 - bounded by the caller
        answer = await client.get(
            f"{scheme}://{literal}:{port}{path}", headers={"Host": host}, extensions={"sni_hostname": host}
        )
    why = "" if answer.is_success else f"{scheme}:{port}{path}: HTTP {answer.status_code}, expected 2xx"
    return Health(address, healthy=answer.is_success, why=why)
