"""Where engines on many machines agree on who runs: one small record a system, changed only by compare-and-set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

from tasks.errors import Rejected


@dataclass(frozen=True)
class Engine:
    """One process.

    Attributes:
        host: its name, for people.
        pid: as its own PID namespace counts.
        started: clock ticks from boot to its start (proc(5), field 22 of stat): a process id alone may be used again.
        machine: boot and PID namespace; only processes with the same one can tell whether the other lives.
    """

    host: str = ""
    pid: int = 0
    started: int = 0
    machine: str = ""

    def __str__(self) -> str:
        return f"process {self.pid or '?'} on {self.host or '?'}"


@dataclass(frozen=True)
class LastRun:
    """How the last run that changed something on a system ended; times are ISO 8601 UTC.

    Attributes:
        verdict: of the journal; ``stopped`` for an engine that gave up, ``died`` for one that was found dead.
        automatic: an alert or a schedule started it, not a person.
    """

    run_id: str
    verdict: str
    ended_at: str
    automatic: bool = False
    acknowledged_by: str = ""
    acknowledged_at: str = ""


@dataclass(frozen=True)
class Mandate:
    """What the last run that began was asked to do: enough for another machine to go on when its machine is lost.

    Attributes:
        runbook: its name in the system's folder; empty for a file elsewhere, which another machine does not have.
        roles: role -> site, as the run concluded them. Observed again in the middle of a move, they would be others.
        plan: digest of the plan: only the same files may go on with it.
        began_at, incident_started_at, detected_at: ISO 8601 UTC; the RTO clock counts through.
        flow_run_id: of Prefect; empty where none shows the run.
        lives: how many machines have had it, this one included. origin: the run on the first of them, if not this one.
        ended: the verdict; empty while the run has not come to one.
    """

    run_id: str
    runbook: str
    mode: str
    roles: dict[str, str]
    plan: str
    began_at: str
    incident_started_at: str
    detected_at: str
    waivers: dict[str, str]
    vars: dict[str, str] = field(default_factory=dict)
    operator: str = ""
    trigger: str = ""
    automatic: bool = False
    flow_run_id: str = ""
    lives: int = 1
    origin: str = ""
    ended: str = ""


@dataclass(frozen=True)
class Held:
    """The record. Two are equal only if the same engine wrote both, and wrote the same.

    Attributes:
        epoch: only grows.
        token: of one engine's hold, random: nobody else ever writes it.
        since: ISO 8601 UTC.
        step: where the run is, for people; refreshed at each renewal.
        ttl_s: of the holder: so long after its last renewal nobody else may take over.
        mandate: of the last run that began here; a holder that began none leaves it as it was.
        paused: why no run of the system may start or change anything; empty while they may. On every machine.
    """

    epoch: int
    run_id: str
    holder: Engine = Engine()
    since: str = ""
    token: str = ""
    step: str = ""
    renewals: int = 0
    ttl_s: float = 0.0
    automatic: bool = False
    released: bool = True
    last: LastRun | None = None
    mandate: Mandate | None = None
    paused: str = ""

    def encode(self) -> str:
        """The record as ASCII JSON, the same text for equal records."""
        found = asdict(self)
        if self.mandate is None:
            del found["mandate"]  # as records were before there were mandates
        if not self.paused:  # as it was before there was such a flag
            del found["paused"]
        return json.dumps(found, sort_keys=True, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str, where: str) -> Held:
        """What ``encode`` made. Raises Rejected for anything else: relight overwrites nothing that it does not know."""
        try:
            held = cls.from_dict(json.loads(text))
        except ValueError as e:
            held, why = None, f": {e}"
        else:
            why = ""
        if held is None or held.encode() != text:
            raise Rejected(
                f"{where} holds no lease of this relight: {text[:120]!r}{why}. It holds the newest epoch: find out who"
                " wrote it (another version of relight?) and remove it only if no run is under way."
            )
        return held

    @classmethod
    def from_dict(cls, found: Any) -> Held:
        """From parsed JSON; what is missing has its default, what is unknown is left out. Raises ValueError."""
        if not isinstance(found, dict) or type(found.get("epoch")) is not int:
            raise ValueError("it has no epoch")
        try:
            known = {f.name: found[f.name] for f in fields(cls) if f.name in found}
            known["holder"] = _made(Engine, found.get("holder") or {})
            known["last"] = _made(LastRun, found["last"]) if found.get("last") else None
            known["mandate"] = _made(Mandate, found["mandate"]) if found.get("mandate") else None
            return cls(**{"run_id": "", **known})
        except TypeError as e:
            raise ValueError(str(e)) from e


def _made(cls: type[Any], found: dict[str, Any]) -> Any:
    if not isinstance(found, dict):
        raise ValueError(f"expected an object for {cls.__name__}")  # noqa: TRY004 - one kind of error for bad data
    return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})


@runtime_checkable
class LeaseStore(Protocol):
    """A record that many machines can compare-and-set. At most one component of a system fulfils this."""

    @property
    def ttl_s(self) -> float:
        """Seconds that a holder may go without renewing before another engine may take over."""
        ...

    @property
    def where(self) -> str:
        """The place of the record, for messages."""
        ...

    async def read(self) -> tuple[Held | None, float | None]:
        """The record, None when there never was one, and its age.

        The age is in seconds by the store's own clock and never more than the true one; None where the store has no
        clock: then only watching tells. Raises Unreachable, Rejected.
        """
        ...

    async def swap(self, old: Held | None, new: Held) -> None:
        """Write ``new`` if the record is exactly ``old`` (None: if there is no record), durably, in one step.

        Raises LostCompare when the record is something else, EffectUnknown when no answer came after the request was
        sent, Unreachable when nothing was sent, Rejected.
        """
        ...
