"""HAProxy's runtime API as text: what it says, read into numbers. No network here.

Source: HAProxy 2.6 management guide, 9.1 (CSV fields), 9.3 ("show servers state", "set server").
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from tasks.errors import BadInput, Rejected
from tasks.traffic.protocol import Server

_MAINT = 0x01 | 0x02 | 0x20  # forced, inherited, no address; not 0x04: that only remembers "disabled" in the file
_DRAIN = 0x08 | 0x10  # forced, inherited
_CHECK_CONFIGURED = 0x02
_CHECK_PASSED = {1, 3}  # valid without more to say; passed
_SERVER_UP = {1, 2}  # warming up; running
_UNKNOWN_OBJECT = (
    "Can't find backend",
    "No such backend",
    "No such server",
    "No such proxy",
    "Require 'backend/server'",
)


@dataclass(frozen=True)
class State:
    """One line of ``show servers state``."""

    name: str
    address: str
    operational: int
    admin: int
    check_result: int
    check_state: int


def states(text: str) -> dict[str, State]:
    """Server name -> state. Raises Rejected for a format other than version 1."""
    lines = text.strip().splitlines()
    if len(lines) < 2 or lines[0].strip() != "1" or not lines[1].startswith("# "):
        raise Rejected(
            f"`show servers state` is not in format 1: {text[:80]!r}. Which HAProxy is this? 1.7 to 3.x have it"
        )
    columns = lines[1][2:].split()
    found = {}
    for line in lines[2:]:
        if not line.strip() or line.startswith("#"):
            continue
        row = dict(zip(columns, line.split(), strict=False))
        found[row["srv_name"]] = State(
            name=row["srv_name"],
            address=f"{row['srv_addr']}:{row['srv_port']}",
            operational=int(row["srv_op_state"]),
            admin=int(row["srv_admin_state"]),
            check_result=int(row["srv_check_result"]),
            check_state=int(row["srv_check_state"]),
        )
    return found


def statistics(text: str) -> list[dict[str, str]]:
    """Rows of ``show stat`` by column name."""
    return list(csv.DictReader(io.StringIO(text.lstrip().removeprefix("# "))))


def servers(pool: str, state_text: str, stat_text: str) -> tuple[Server, ...]:
    """One pool's servers, in the order of HAProxy's file.

    ``up`` asks for more than HAProxy does: a server that leaves maintenance counts as UP before its first check, so
    where there is a check its last one must have passed and its counter be full (fields 67 to 69 of ``show stat``).
    """
    by_name = states(state_text)
    found = []
    for row in statistics(stat_text):
        state = by_name.get(row["svname"]) if row["pxname"] == pool else None
        if state is None:
            continue
        up = state.operational in _SERVER_UP
        if state.check_state & _CHECK_CONFIGURED and row["check_rise"]:
            full = int(row["check_rise"]) + int(row["check_fall"]) - 1
            up = up and state.check_result in _CHECK_PASSED and int(row["check_health"]) >= full
        maint, drain = state.admin & _MAINT, state.admin & _DRAIN
        found.append(
            Server(
                pool=pool,
                name=state.name,
                site=state.name.partition("-")[0],
                address=row.get("addr") or state.address,
                admin="maint" if maint else "drain" if drain else "ready",
                up=up,
                weight=int(row["weight"] or 0),
                sessions=int(row["scur"] or 0),
            )
        )
    return tuple(found)


def refusal(label: str, command: str, answer: str) -> BadInput | Rejected:
    """The error for an answer that is not the expected one."""
    said = answer.strip().splitlines()[0][:200]
    if said.startswith(_UNKNOWN_OBJECT):
        return BadInput(f"{label}: {said} ({command}). Compare the names with its configuration.")
    if said.startswith("Permission denied"):
        return Rejected(f"{label}: permission denied for `{command}`: the stats socket needs `level admin`", said=said)
    if said.startswith("Unknown command"):
        return Rejected(f"{label}: does not know `{command}`; HAProxy 2.6 or newer is expected", said=said)
    return Rejected(f"{label}: `{command}` was refused: {said}", said=said)
