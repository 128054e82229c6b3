"""Whether the application of a site serves: what its own instances say."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tasks.capacity.protocol import Capacity
from tasks.errors import Unreachable


class Application(NamedTuple):
    """``silent``: the site's control did not answer, which proves nothing."""

    state: Literal["serves", "down", "silent"]
    summary: str


async def application(capacity: Capacity, site: str) -> Application:
    try:
        every = await capacity.instances(site)
    except Unreachable as e:
        return Application("silent", f"application of {site}: no answer from its control ({e})")
    ready, running = sum(i.ready for i in every), sum(i.running for i in every)
    summary = f"application of {site}: {ready} of {running} running instances are ready"
    return Application("serves" if ready else "down", summary)
