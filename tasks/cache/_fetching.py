"""One GET as a client sends it, bounded, with the headers of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx

from tasks import trust
from tasks.errors import Rejected, Unreachable


async def fetched(method: str, url: str, host: str | None, timeout_s: float) -> Mapping[str, str]:
    """The headers of a good answer, 2xx or 3xx (404 and 410 may be cached too, and are not what is wanted).

    Raises Unreachable without an answer (with the fact ``sent`` where the request went out), Rejected for another
    status. A connection of its own each time.
    """
    headers = {"Host": host} if host else {}
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(verify=trust.verify(url), timeout=None, trust_env=False) as client,  # noqa: S113 - bounded here
        ):
            answer = await client.request(method, url, headers=headers)
    except (httpx.ConnectError, httpx.ConnectTimeout) as e:
        raise Unreachable(f"{method} {url}: no connection ({e})") from e
    except (httpx.HTTPError, TimeoutError) as e:
        why = str(e) or type(e).__name__
        raise Unreachable(f"{method} {url}: no answer within {timeout_s:g} s ({why})", sent=True) from e
    if answer.status_code >= 400:
        raise Rejected(f"{method} {url}: HTTP {answer.status_code}, expected 2xx or 3xx", status=answer.status_code)
    return answer.headers
