"""People as the system file names them."""

from __future__ import annotations

from typing import ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tasks.contract import Surroundings, in_thread
from tasks.errors import BadInput
from tasks.people.protocol import Approver, Event, Subscription
from tasks.quantities import Duration
from tasks.secrets import SecretRef, resolve

LOCAL = ("env", "file")
"""Schemes that are read at once; the others ask a service."""


class ApproverSettings(BaseModel):
    """One person. Without a secret he or she can approve in the Prefect UI only, where ``ui`` allows that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    groups: tuple[str, ...] = ()
    secret: SecretRef | None = Field(
        default=None, description="What the person signs approvals with; at least 16 characters."
    )


class NotifySettings(BaseModel):
    """One receiver."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret_url: SecretRef = Field(
        description="Reference to a URL as apprise takes it (json://, slack://, mailto:// …)."
    )
    events: tuple[Event, ...] = Field(
        default=get_args(Event), min_length=1, description="What is sent there; default: all."
    )
    timeout: Duration = Field(default=10.0, gt=0, le=60, description="Then it counts as not delivered.")


class DirectorySettings(BaseModel):
    """Who may approve, and who is told.

    ``ui`` true: a name that the Prefect UI took counts without a signature. Only where that UI asks who one is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    approvers: dict[str, ApproverSettings] = Field(default_factory=dict)
    ui: bool = False
    notify: tuple[NotifySettings, ...] = ()


class FileDirectory:
    """Fulfils ``tasks.people.protocol.Directory``."""

    Settings: ClassVar[type[BaseModel]] = DirectorySettings

    def __init__(self, settings: DirectorySettings, around: Surroundings) -> None:
        self._settings, self._component = settings, around.component
        self._fetched: dict[str, SecretStr] = {}

    def approvers(self) -> tuple[Approver, ...]:
        return tuple(Approver(name, one.groups) for name, one in self._settings.approvers.items())

    def vouches_for_ui(self) -> bool:
        return self._settings.ui

    async def secret(self, name: str) -> SecretStr:
        reference = self.reference(name)
        if reference.partition(":")[0] in LOCAL:
            return resolve(reference)
        if name not in self._fetched:  # it is asked for several times a second while a step waits
            self._fetched[name] = await in_thread(lambda: resolve(reference))
        return self._fetched[name]

    def reference(self, name: str) -> str:
        """Where the secret of ``name`` is. Raises BadInput."""
        found = self._settings.approvers.get(name)
        if found is None or found.secret is None:
            what = "is no approver" if found is None else "has no secret, so nothing signed by that name counts"
            raise BadInput(f"{self._component}: {name!r} {what}")
        return found.secret

    def subscriptions(self) -> tuple[Subscription, ...]:
        return tuple(Subscription(n.secret_url, n.events, n.timeout) for n in self._settings.notify)

    async def aclose(self) -> None:
        """Nothing is held open."""


PROVIDER = FileDirectory
