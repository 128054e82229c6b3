"""A request for a run as one line of text, for a process that waits for it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from datetime import datetime

from flows.engine.launch import Request
from flows.engine.roles import Wish
from tasks.errors import BadInput
from tasks.leases.protocol import Mandate

_TIMES = ("incident_started_at", "detected_at")


def pack(request: Request) -> str:
    """One line of JSON."""
    found = asdict(request)
    for name in _TIMES:
        found[name] = found[name].isoformat() if found[name] else None
    found["waivers"], found["cause"], found["vars"] = dict(request.waivers), dict(request.cause), dict(request.vars)
    return json.dumps(found)


def unpack(line: str) -> Request:
    """What ``pack`` made. Raises BadInput."""
    try:
        found = json.loads(line)
        if set(found) != {f.name for f in fields(Request)}:
            raise BadInput(f"this is no request of this version of relight: {sorted(found)}")
        for name in _TIMES:
            found[name] = datetime.fromisoformat(found[name]) if found[name] else None
        lost = Mandate(**found["takes_over"]) if found["takes_over"] else None
        return Request(**{**found, "wish": Wish(**found["wish"]), "takes_over": lost})
    except (ValueError, TypeError) as e:
        raise BadInput(f"this is no request: {e}") from e
