"""Commands on EC2 instances by Systems Manager's Run Command. Fulfils ``tasks.hosts.protocol.Hosts``.

Each run carries a mark of its own in its comment, so that one whose reply was lost is found among the instance's
invocations and followed instead of started again. Sources: Systems Manager API 2014-11-06, SendCommand,
GetCommandInvocation, ListCommandInvocations, CancelCommand; *Understanding command statuses*.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import secrets
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tasks.aws import Account, Aws
from tasks.contract import Surroundings
from tasks.errors import BadInput, EffectUnknown, NotYet, Rejected, RelightError, Unreachable
from tasks.hosts.protocol import Ran
from tasks.manual import aws
from tasks.marks import owned, pairs
from tasks.secrets import redact

T = TypeVar("T")
MOST_BYTES = 8192
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_DELIVERY_S = 30
"""The least that SendCommand takes: how long it waits for the instance to take the command."""
_NEVER_RAN = ("DeliveryTimedOut", "Undeliverable", "InvalidPlatform", "AccessDenied")
_LOOKS, _LOOK_S, _POLL_S = 10, 0.2, 0.3


class Managed(BaseModel):
    """An instance that Systems Manager manages; it carries the tag ``relight:system``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instance: str = Field(pattern="^(i|mi)-")
    region: str


class SsmSettings(Account):
    """``commands``: name -> argument list; ``{target}`` and other ``{names}`` are filled in, each as one argument.

    ``targets``: name -> instance; every value that is filled in must be one of these names. ``document`` takes a
    parameter ``commands``.
    """

    commands: dict[str, list[str]] = Field(min_length=1)
    targets: dict[str, Managed] = Field(min_length=1)
    document: str = "AWS-RunShellScript"


@dataclass(frozen=True)
class _Sent:
    """One run on its way: where, by which mark it is found, and until when it may take."""

    where: Managed
    label: str
    mark: str
    deadline: float


class Commands:
    """What may be run, in words, and as a line of the CLI. Every argument is quoted: the shell gets words only."""

    _settings: SsmSettings
    _around: Surroundings

    def knows(self, command: str) -> bool:
        """Does the system file have ``command``?"""
        return command in self._settings.commands

    def line(self, command: str, target: str) -> str:
        """See ``tasks.hosts.protocol.ByHand``: sent, waited for (the CLI gives up after 100 s), what it printed."""
        words = shlex.join(self._words(command, {"target": target}))
        where = self._settings.targets[target]

        def told(*words: str) -> str:
            return aws(where.region, self._settings.profile, "ssm", *words)

        given = ("--parameters", json.dumps({"commands": [words]}), "--query", "Command.CommandId", "--output", "text")
        document = ("--document-name", self._settings.document)
        sent = told("send-command", "--instance-ids", where.instance, *document, *given)
        which = f'--command-id "$id" --instance-id {where.instance}'
        result = ("--query", "StandardOutputContent", "--output", "text")
        return (
            f"id=$({sent}) && {told('wait', 'command-executed')} {which} && {told('get-command-invocation', *result)}"
            f" {which}"
        )

    def _words(self, command: str, values: Mapping[str, str]) -> list[str]:
        if command not in self._settings.commands:
            known = ", ".join(sorted(self._settings.commands))
            raise BadInput(f"component {self._around.component} has no command {command!r}; it has {known}")
        for name, value in values.items():
            if value not in self._settings.targets:
                known = ", ".join(self._settings.targets)
                raise BadInput(
                    f"component {self._around.component}: {name} {value!r} is not one of its targets ({known})"
                )

        def filled(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise BadInput(
                    f"command {command!r} of component {self._around.component} needs {{{match[1]}}}, which is not"
                    " given"
                )
            return values[match[1]]

        return [_PLACEHOLDER.sub(filled, part) for part in self._settings.commands[command]]


class Ssm(Commands):
    """Sends, follows, and finds again what it sent."""

    Settings: ClassVar[type[BaseModel]] = SsmSettings

    def __init__(self, settings: SsmSettings, around: Surroundings) -> None:
        self._settings, self._around = settings, around
        self._aws = Aws(settings, around.component)

    async def aclose(self) -> None:
        """Close the clients."""
        await self._aws.aclose()

    async def run(self, command: str, target: str, *, timeout_s: float, values: Mapping[str, str] | None = None) -> Ran:
        """See the Protocol. A command that does not end in time is told to stop."""
        words = self._words(command, {"target": target, **(values or {})})
        where = self._settings.targets[target]
        await self._marked(target, where)
        label = f"command {command!r} for {target} ({where.instance})"
        mark = f"relight {self._around.system} {secrets.token_hex(8)}"
        sent = _Sent(where, label, mark, self._around.clock.monotonic() + timeout_s)
        reference = await self._send(sent, shlex.join(words), timeout_s)
        return await self._followed(sent, reference)

    async def _send(self, sent: _Sent, line: str, timeout_s: float) -> str:
        """The id of the command, also where the reply was lost. Raises Unreachable, NotYet, Rejected, EffectUnknown."""
        try:
            answer = await self._ask(
                sent.where,
                f"SendCommand {sent.label}",
                lambda c: c.send_command(
                    InstanceIds=[sent.where.instance],
                    DocumentName=self._settings.document,
                    Comment=sent.mark,
                    TimeoutSeconds=_DELIVERY_S,
                    Parameters={"commands": [line], "executionTimeout": [str(max(1, math.ceil(timeout_s)))]},
                ),
                changes=True,
            )
        except EffectUnknown as e:
            found = await self._sought(sent)
            if found is None:
                raise EffectUnknown(
                    f"{sent.label}: {e}; it is not among the instance's invocations yet, and may still come",
                    mark=sent.mark,
                ) from e
            return found
        except Rejected as e:
            if e.facts.get("code") == "InvalidInstanceId":
                raise Unreachable(
                    f"{sent.label}: the instance is not managed or its agent does not answer ({e}); nothing was sent"
                ) from e
            raise
        return str(answer["Command"]["CommandId"])

    async def _sought(self, sent: _Sent) -> str | None:
        """Look for the mark among the newest invocations, a few times: their list lags behind."""
        for _ in range(_LOOKS):
            with contextlib.suppress(Unreachable, NotYet):
                answer = await self._ask(
                    sent.where,
                    f"ListCommandInvocations {sent.label}",
                    lambda c: c.list_command_invocations(InstanceId=sent.where.instance, MaxResults=50),
                )
                for found in answer["CommandInvocations"]:
                    if found.get("Comment") == sent.mark:
                        return str(found["CommandId"])
            if self._around.clock.monotonic() + _LOOK_S > sent.deadline:
                return None
            await self._around.clock.sleep(_LOOK_S)
        return None

    async def _followed(self, sent: _Sent, reference: str) -> Ran:
        """Until it has ended. Raises EffectUnknown when that is not in time, Unreachable when it never ran."""
        while True:
            found = await self._invocation(sent, reference)
            status = found.get("Status", "Pending")
            if status not in ("Pending", "InProgress", "Delayed", "Cancelling"):
                return self._ended(sent, reference, found)
            if self._around.clock.monotonic() + _POLL_S > sent.deadline:
                await self._cancel(sent, reference)
                raise EffectUnknown(
                    f"{sent.label} did not end in time ({status}) and was told to stop; command id {reference}",
                    command_id=reference,
                )
            await self._around.clock.sleep(_POLL_S)

    async def _invocation(self, sent: _Sent, reference: str) -> dict[str, Any]:
        """Empty while it cannot be told."""
        try:
            return await self._ask(
                sent.where,
                f"GetCommandInvocation {reference}",
                lambda c: dict(c.get_command_invocation(CommandId=reference, InstanceId=sent.where.instance)),
            )
        except (Unreachable, NotYet):
            return {}
        except Rejected as e:
            if e.facts.get("code") == "InvocationDoesNotExist":  # right after SendCommand
                return {}
            raise

    def _ended(self, sent: _Sent, reference: str, found: Mapping[str, Any]) -> Ran:
        status, details = found["Status"], str(found.get("StatusDetails", ""))
        if details.replace(" ", "") in _NEVER_RAN:
            raise Unreachable(f"{sent.label}: {details}, it never ran; command id {reference}", command_id=reference)
        if status not in ("Success", "Failed"):
            raise EffectUnknown(
                f"{sent.label}: {status} ({details}), it may have run in part; command id {reference}",
                command_id=reference,
            )
        out, err = (_tail(str(found.get(k, ""))) for k in ("StandardOutputContent", "StandardErrorContent"))
        return Ran(int(found["ResponseCode"]), out, err, reference)

    async def _cancel(self, sent: _Sent, reference: str) -> None:
        """As far as that is possible: what was started may go on."""
        with contextlib.suppress(RelightError):
            await self._ask(
                sent.where, f"CancelCommand {reference}", lambda c: c.cancel_command(CommandId=reference), changes=True
            )

    async def _marked(self, target: str, where: Managed) -> None:
        """Raises SafetyRefusal for an instance that is not marked."""
        client = await self._aws.client("ec2", where.region)
        only = [{"Name": "resource-id", "Values": [where.instance]}]
        answer = await self._aws.call(f"DescribeTags {where.instance}", lambda: client.describe_tags(Filters=only))
        label = f"{self._around.component}: instance {where.instance} of {target}"
        owned(label, pairs(answer["Tags"]), self._around.system)

    async def _ask(self, where: Managed, what: str, call: Callable[[Any], T], *, changes: bool = False) -> T:
        client = await self._aws.client("ssm", where.region)
        asked: Awaitable[T] = self._aws.call(what, lambda: call(client), changes=changes)
        return await asked


def _tail(text: str) -> str:
    """The last ``MOST_BYTES``. Redacted before it is cut: half a secret would not be found."""
    return redact(text.strip()).encode()[-MOST_BYTES:].decode("utf-8", "ignore")


PROVIDER = Ssm
