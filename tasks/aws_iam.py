"""What AWS IAM knows of the use of permissions, and what relight's own principal may do. Reads only.

Relied on (IAM API reference and user guide): ``GetAccountAuthorizationDetails`` has every user, group and role with its
inline policies and ``RoleLastUsed``; activity is kept for 400 days at least. ``GetAccessKeyLastUsed`` names no date for
a key that was never used. The credential report is made on request and kept for four hours; of a password it says
``no_information`` where it was never used since October 2014, and only it tells of the root user.
``GenerateServiceLastAccessedDetails`` counts attempts, not grants, and by identity policies only.
IAM's one endpoint of a partition is asked (for ``aws`` it is in us-east-1), whatever the region of the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import unquote

from tasks.aws import Aws
from tasks.clock import Clock
from tasks.errors import NotYet, Rejected, Unreachable

T = TypeVar("T")
TOGETHER = 8
"""Calls at one time: IAM slows a busy caller down."""
MADE_S, AGAIN_S = 30.0, 0.5
"""So long may a report take that IAM makes on request; asked for so often."""
NEVER = frozenset({"", "N/A", "no_information", "not_supported"})


@dataclass(frozen=True)
class Key:
    """An access key. ``used``: None for one that was never used."""

    user: str
    id: str
    active: bool
    created: datetime
    used: datetime | None
    service: str = ""


@dataclass(frozen=True)
class Login:
    """A line of the credential report. ``used``: of the password. ``root_keys``: active keys of the root user."""

    user: str
    created: datetime | None
    password: bool
    used: datetime | None
    root_keys: int = 0


@dataclass(frozen=True)
class AssumedRole:
    """A role that somebody of the account made. ``used``: None where that was not in the tracking period."""

    name: str
    created: datetime
    used: datetime | None


@dataclass(frozen=True)
class Grant:
    """An action, as written (``s3:*``), that a policy allows. ``policy``: how the CLI names it and whose it is."""

    action: str
    policy: str


@dataclass(frozen=True)
class Service:
    """``used``: None where the principal never asked it for anything in the tracking period."""

    namespace: str
    used: datetime | None


@dataclass(frozen=True)
class Holder:
    """Relight's own principal. ``kind``: ``user`` or ``role``.

    Attributes:
        unjudged: what its policies have that makes more or less of them: Deny, NotAction, a boundary.
    """

    kind: str
    name: str
    arn: str
    grants: tuple[Grant, ...]
    unjudged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Details:
    """The account as GetAccountAuthorizationDetails gives it."""

    users: tuple[dict[str, Any], ...]
    groups: tuple[dict[str, Any], ...]
    roles: tuple[dict[str, Any], ...] = field(default=())

    def used_roles(self) -> tuple[AssumedRole, ...]:
        """Without those that AWS services made for themselves."""
        return tuple(
            AssumedRole(r["RoleName"], r["CreateDate"], (r.get("RoleLastUsed") or {}).get("LastUsedDate"))
            for r in self.roles
            if not r["Path"].startswith("/aws-service-role/")
        )


class Iam:
    """The account that ``aws`` leads to. ``regions``: whose STS may say who we are, the next where one is dark."""

    def __init__(self, aws: Aws, regions: tuple[str, ...], clock: Clock) -> None:
        self._aws, self._regions, self._clock = aws, regions, clock
        self._region = regions[0]

    async def aclose(self) -> None:
        """Close its clients."""
        await self._aws.aclose()

    async def _call(self, operation: str, **words: Any) -> dict[str, Any]:
        client = await self._aws.client("iam", self._region)
        found: dict[str, Any] = await self._aws.call(operation, lambda: getattr(client, operation)(**words))
        return found

    async def _pages(self, operation: str, **words: Any) -> list[dict[str, Any]]:
        pages = [await self._call(operation, **words)]
        while pages[-1].get("IsTruncated"):
            pages.append(await self._call(operation, Marker=pages[-1]["Marker"], **words))
        return pages

    async def whoami(self) -> str:
        """The ARN of relight's own principal. Raises Unreachable, NotYet, Rejected, as all below. Ask it first: where
        a region is dark, the others are asked instead from then on.
        """
        for region in self._regions[:-1]:
            with contextlib.suppress(Unreachable):
                return await self._whoami(region)
        return await self._whoami(self._regions[-1])

    async def _whoami(self, region: str) -> str:
        client = await self._aws.client("sts", region)
        found = str((await self._aws.call("get_caller_identity", client.get_caller_identity))["Arn"])
        self._region = region
        return found

    async def details(self) -> Details:
        pages = await self._pages("get_account_authorization_details", Filter=["User", "Group", "Role"])

        def every(name: str) -> tuple[dict[str, Any], ...]:
            return tuple(x for page in pages for x in page.get(name, ()))

        return Details(every("UserDetailList"), every("GroupDetailList"), every("RoleDetailList"))

    async def keys(self, details: Details) -> tuple[Key, ...]:
        """Every access key of every user."""

        async def of(user: str) -> list[dict[str, Any]]:
            pages = await self._pages("list_access_keys", UserName=user)
            return [k for page in pages for k in page["AccessKeyMetadata"]]

        async def used(key: dict[str, Any]) -> Key:
            last = (await self._call("get_access_key_last_used", AccessKeyId=key["AccessKeyId"])).get(
                "AccessKeyLastUsed", {}
            )
            active = key["Status"] == "Active"
            service = last.get("ServiceName", "")
            return Key(
                key["UserName"], key["AccessKeyId"], active, key["CreateDate"], last.get("LastUsedDate"), service
            )

        found = await _some(of(u["UserName"]) for u in details.users)
        return tuple(await _some(used(k) for keys in found for k in keys))

    async def logins(self) -> tuple[Login, ...]:
        """The credential report, made anew where it is older than four hours."""

        async def made() -> bool:
            return bool((await self._call("generate_credential_report"))["State"] == "COMPLETE")

        await self._until("the credential report", made)
        content = (await self._call("get_credential_report"))["Content"]
        return tuple(_login(row) for row in csv.DictReader(io.StringIO(content.decode())))

    async def services(self, arn: str) -> tuple[Service, ...]:
        """What the user or role has been asking for, by service."""
        job = (await self._call("generate_service_last_accessed_details", Arn=arn))["JobId"]
        done: dict[str, Any] = {}

        async def made() -> bool:
            nonlocal done
            done = await self._call("get_service_last_accessed_details", JobId=job)
            if done["JobStatus"] == "FAILED":
                raise Rejected(f"the access advisor gives no answer: {done.get('Error', {}).get('Message', '')}")
            return bool(done["JobStatus"] == "COMPLETED")

        await self._until("the access advisor", made)
        found = list(done["ServicesLastAccessed"])
        while done.get("IsTruncated"):
            done = await self._call("get_service_last_accessed_details", JobId=job, Marker=done["Marker"])
            found += done["ServicesLastAccessed"]
        return tuple(Service(s["ServiceNamespace"], s.get("LastAuthenticated")) for s in found)

    async def _until(self, what: str, made: Callable[[], Awaitable[bool]]) -> None:
        end = self._clock.monotonic() + MADE_S
        while not await made():
            if self._clock.monotonic() >= end:
                raise NotYet(f"{what} was not made within {MADE_S:g} s")
            await self._clock.sleep(AGAIN_S)

    async def holder(self, details: Details, arn: str) -> Holder:
        """What the identity policies of relight's own principal say. Raises Rejected for one that is not in them."""
        kind, _, path = arn.rpartition(":")[2].partition("/")
        name = path.split("/")[0] if kind == "assumed-role" else path.rpartition("/")[2]
        kind = "role" if kind == "assumed-role" else kind
        every = details.roles if kind == "role" else details.users if kind == "user" else ()
        mine = next((x for x in every if x[f"{kind.title()}Name"] == name), None)
        if mine is None:
            raise Rejected(f"{arn} is no user and no role of this account, so its policies were not read")
        grants, unjudged = await self._policies(mine, kind, name)
        for group in details.groups:
            if kind == "user" and group["GroupName"] in mine.get("GroupList", ()):
                more, also = await self._policies(group, "group", group["GroupName"])
                grants, unjudged = grants + more, unjudged + also
        if mine.get("PermissionsBoundary"):
            unjudged.append("it has a permissions boundary")
        return Holder(kind, name, mine["Arn"], tuple(grants), tuple(dict.fromkeys(unjudged)))

    async def _policies(self, holder: dict[str, Any], kind: str, name: str) -> tuple[list[Grant], list[str]]:
        inline = holder.get(f"{kind.title()}PolicyList", ())
        found = [(f"inline policy {p['PolicyName']} of {kind} {name}", p["PolicyDocument"]) for p in inline]
        for attached in holder.get("AttachedManagedPolicies", ()):
            of = attached["PolicyArn"]
            version = (await self._call("get_policy", PolicyArn=of))["Policy"]["DefaultVersionId"]
            read = await self._call("get_policy_version", PolicyArn=of, VersionId=version)
            found.append((f"{of} of {kind} {name}", read["PolicyVersion"]["Document"]))
        grants: list[Grant] = []
        unjudged: list[str] = []
        for policy, document in found:
            for statement in _statements(document):
                if statement["Effect"] == "Allow" and "Action" in statement:
                    grants += [Grant(action, policy) for action in _list(statement["Action"])]
                else:
                    what = "NotAction" if "NotAction" in statement else statement["Effect"]
                    unjudged.append(f"{policy} has {what} in a statement")
        return grants, unjudged


async def _some(calls: Iterable[Awaitable[T]]) -> list[T]:
    waiting, found = iter(calls), list[T]()
    while few := list(islice(waiting, TOGETHER)):
        found += await asyncio.gather(*few)
    return found


def _statements(document: Any) -> list[dict[str, Any]]:
    """Of a policy, which boto3 gives parsed, and some endpoints as (quoted) text."""
    found = json.loads(unquote(document)) if isinstance(document, str) else document
    statements: list[dict[str, Any]] = _list(found["Statement"])
    return statements


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _login(row: dict[str, str]) -> Login:
    def at(name: str) -> datetime | None:
        text = row.get(name) or ""
        return None if text in NEVER else datetime.fromisoformat(text).astimezone(UTC)

    root = row["user"] == "<root_account>"
    keys = sum(row.get(f"access_key_{n}_active") == "true" for n in (1, 2)) if root else 0
    return Login(
        row["user"], at("user_creation_time"), row.get("password_enabled") == "true", at("password_last_used"), keys
    )


def covers(pattern: str, action: str) -> bool:
    """Does a policy's ``pattern`` allow ``action``? ``*`` and ``?`` as IAM has them, whatever the case."""
    return fnmatchcase(action.lower(), pattern.lower().replace("[", "[[]"))
