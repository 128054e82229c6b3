"""What a directory of people can say: who may approve, and what each signs with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from pydantic import SecretStr

Event = Literal["start", "approval", "objective", "end", "alert"]
"""What people can be told of: a run began; a person is asked for; 50, 80 and 100 % of an objective; a run ended, or
its engine died; an alert that waits for a person, or signals that disagree."""


@dataclass(frozen=True)
class Approver:
    """A person who may approve, and the groups that he or she is in."""

    name: str
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subscription:
    """Where to send what. ``reference``: of the secret that holds the receiver's URL (apprise's, https://appriseit.com)."""

    reference: str
    events: tuple[Event, ...]
    timeout_s: float


@runtime_checkable
class Directory(Protocol):
    """The people of a system."""

    def approvers(self) -> tuple[Approver, ...]: ...

    def vouches_for_ui(self) -> bool:
        """Counts a name that the Prefect UI took, without a signature: whoever reaches that UI is trusted."""
        ...

    async def secret(self, name: str) -> SecretStr:
        """What ``name`` signs with. Raises MissingSecret, BadInput for a person without one."""
        ...

    def subscriptions(self) -> tuple[Subscription, ...]: ...
