"""What the receiver answers, as its OpenAPI description says it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Taken(BaseModel):
    """A delivery that is on disk, or needs not be."""

    taken: Literal["accepted", "duplicate", "known", "stale", "noted", "test"] = Field(
        description=(
            "accepted: something fires, and rules are asked. duplicate: this very delivery came before. known: nothing"
            " in it is new. stale: too old to act on. noted: nothing fires. test: what would have been decided."
        )
    )
    delivery: int = Field(description="Its number in the inbox.")
    events: list[int] = Field(default=[], description="Numbers of its events: relight inbox show NUMBER.")
    would: list[dict[str, Any]] | None = Field(default=None, description="For a test: what every gate said.")


class Shaken(BaseModel):
    """A delivery that is no alert: a sender that asks whether this endpoint is meant."""

    said: str


class NotTaken(BaseModel):
    """Why it was not taken. Nothing was kept."""

    error: str


class Health(BaseModel):
    """Does it take deliveries, and are they decided about?"""

    ok: bool
    endpoints: list[str] = []
    decided_at: str | None = Field(default=None, description="When the inbox was looked at last.")
    blind: dict[str, str] = Field(default={}, description="System -> why its monitoring cannot be trusted to speak up.")
    reconciled: dict[str, str] = Field(default={}, description="Endpoint -> when its sender was asked last.")
    trouble: dict[str, str] = Field(default={}, description="Endpoint -> why its sender cannot be asked.")


_WHY = {
    400: "The body is not what this sender sends.",
    401: "No token or signature.",
    403: "A token or signature that is none of this endpoint's.",
    404: "No such endpoint.",
    408: "The body did not come in time.",
    413: "The body is too large, also once it is decompressed.",
    415: "A Content-Encoding that is not understood.",
}
RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Taken | Shaken, "description": "Nothing to do, and why."},
    202: {"model": Taken, "description": "On disk; rules are asked."},
    **{status: {"model": NotTaken, "description": why} for status, why in _WHY.items()},
    503: {"model": NotTaken, "description": "It could not be kept. Send it again.", "headers": RETRY},
}
BODY = {
    "requestBody": {
        "required": True,
        "description": "What the sender posts, as it posts it; see docs/alerts.md.",
        "content": {"application/json": {"schema": {}}, "text/plain": {"schema": {}}},
    }
}
