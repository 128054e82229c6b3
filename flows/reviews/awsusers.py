"""Permissions of an AWS account that nobody uses: keys, passwords, roles, and what relight's own principal has more.

Each source that does not answer is a finding of its own (unknown), and the rest is looked at all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from flows.engine import places
from flows.engine.system import LoadedSystem
from flows.reviews import looking
from flows.reviews.finding import Finding
from tasks.clock import Clock
from tasks.errors import RelightError
from tasks.secrets import redact

if TYPE_CHECKING:
    from tasks.aws_iam import AssumedRole, Holder, Iam, Key, Login, Service

T = TypeVar("T")
UNUSED, ROTATED = timedelta(days=90), timedelta(days=365)
OWN = "aws-iam"
"""The policy of ``deployments/iam`` that this look itself needs."""
ALLOW = f"allow what deployments/iam/{OWN}.json says; it only reads"


@dataclass(frozen=True)
class Needs:
    """What the components that use one profile may need. ``actions``: by ``policies``, files of ``deployments/iam``.

    ``timeout_s``: the longest of these components'.
    """

    profile: str | None
    timeout_s: float
    actions: frozenset[str]
    policies: tuple[str, ...]


def needs(loaded: LoadedSystem) -> tuple[Needs, ...]:
    """One for each profile of the system's components on AWS, in the order of the file; none without any."""
    profiles: dict[str | None, set[str]] = {}
    timeouts: dict[str | None, float] = {}
    for name, settings in loaded.settings.items():
        if _of_aws(settings):
            profile, timeout_s = getattr(settings, "profile", None), getattr(settings, "timeout", 0.0)
            profiles.setdefault(profile, set()).add(loaded.system.components[name].provider)
            timeouts[profile] = max(timeout_s, timeouts.get(profile, 0.0))
    secret = any(
        t.startswith("aws-secret:") for c in loaded.system.components.values() for t in looking.texts(c.settings)
    )
    found = []
    for profile, providers in profiles.items():
        names = sorted(providers | {OWN} | ({"aws-secret"} if secret else set()))
        found.append(Needs(profile, timeouts[profile], frozenset(a for n in names for a in _allowed(n)), tuple(names)))
    return tuple(found)


def _of_aws(settings: Any) -> bool:
    """Does its provider call AWS by a profile or boto3's own credentials? A store with keys of its own does not."""
    if any(c.__module__ == "tasks.aws" for c in type(settings).__mro__):
        return True
    buckets = getattr(settings, "sites", {}) if getattr(settings, "access_key", "none") is None else {}
    return any(getattr(b, "endpoint", "none") is None for b in buckets.values())


def _allowed(policy: str) -> Iterator[str]:
    """The actions of a policy of ``deployments/iam``; none where a provider has no policy."""
    file = places.data("deployments") / "iam" / f"{policy}.json"
    if file.is_file():
        for statement in json.loads(file.read_text(encoding="utf-8"))["Statement"]:
            yield from [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]


async def audit(loaded: LoadedSystem, clock: Clock, now: datetime) -> list[Finding]:
    """Of each account that the system's components lead to; nothing for a system without AWS. Changes nothing."""
    asked = needs(loaded)
    if not asked:
        return []
    from tasks.aws import Account, Aws  # noqa: PLC0415 - boto3 only where it is used
    from tasks.aws_iam import Iam  # noqa: PLC0415

    regions = tuple(dict.fromkeys(s.region for s in loaded.system.sites.values() if s.region)) or ("us-east-1",)
    findings: list[Finding] = []
    for one in asked:
        iam = Iam(Aws(Account(profile=one.profile, timeout=one.timeout_s), "the audit"), regions, clock)
        try:
            findings += await _account(iam, one, now)
        finally:
            await asyncio.shield(iam.aclose())
    return list({f.key: f for f in findings}.values())  # two profiles may lead to one account


async def _account(iam: Iam, asked: Needs, now: datetime) -> list[Finding]:
    of = f" of profile {asked.profile}" if asked.profile else ""
    arn = await _known(iam.whoami())
    details = await _known(iam.details())
    logins = await _known(iam.logins())
    findings = [*roots(logins), *passwords(logins, now)] if not isinstance(logins, str) else []
    if isinstance(logins, str):
        findings.append(_unknown(f"passwords{of}", "when passwords were last used, and whether root has keys", logins))
    if isinstance(details, str):
        what = "which access keys and roles are used, and what relight itself may do"
        return [*findings, _unknown(f"account{of}", what, details)]
    keys = await _known(iam.keys(details))
    if isinstance(keys, str):
        findings.append(_unknown(f"keys{of}", "which access keys are used", keys))
    else:
        findings += unused_keys(keys, now)
    holder = arn if isinstance(arn, str) and not arn.startswith("arn:") else await _known(iam.holder(details, str(arn)))
    if isinstance(holder, str):
        findings.append(_unknown(f"principal{of}", "what relight itself may do beyond its needs", holder))
        return [*findings, *unused_roles(details.used_roles(), "", now)]
    services = await _known(iam.services(holder.arn))
    findings += unused_roles(details.used_roles(), holder.name if holder.kind == "role" else "", now)
    findings += beyond(holder, asked, services if not isinstance(services, str) else None)
    if isinstance(services, str):
        what = f"which services {holder.kind} {holder.name} (relight) has been using"
        findings.append(_unknown(f"advisor{of}", what, services))
    return findings


async def _known(call: Awaitable[T]) -> T | str:
    """Its answer, or why there is none."""
    try:
        return await call
    except RelightError as e:
        return redact(e.message)


def _unknown(key: str, what: str, why: str) -> Finding:
    return Finding(f"iam-{key}", "unknown", f"not known: {what}", why, ALLOW)


def roots(logins: tuple[Login, ...]) -> Iterator[Finding]:
    """Keys of the root user, whom no policy limits."""
    for root in logins:
        if root.root_keys:
            yield Finding(
                "iam-root-keys",
                "critical",
                f"the root user of the account has {root.root_keys} active access keys",
                "by the credential report; nothing limits what they may do",
                "sign in as root, give whoever uses them a role, and delete them: Security credentials, Access keys",
            )


def passwords(logins: tuple[Login, ...], now: datetime) -> Iterator[Finding]:
    """Passwords of the console that nobody types."""
    for one in logins:
        since = one.used or one.created
        if not one.password or one.root_keys or one.user.startswith("<") or since is None or now - since < UNUSED:
            continue
        used = f"last used on {one.used:%Y-%m-%d}" if one.used else f"never used since {since:%Y-%m-%d}"
        yield Finding(
            f"iam-password {one.user}",
            "warning",
            f"user {one.user} has a password for the console that was not used for {(now - since).days} days",
            f"{used}, by the credential report",
            f"aws iam delete-login-profile --user-name {one.user}    # back: aws iam create-login-profile",
            "shell",
        )


def unused_keys(keys: tuple[Key, ...], now: datetime) -> Iterator[Finding]:
    """Keys that nobody uses, and those that are in use for too long."""
    for key in keys:
        since, of = key.used or key.created, f"--user-name {key.user} --access-key-id {key.id}"
        used = f"last used on {key.used:%Y-%m-%d} ({key.service})" if key.used else "never used"
        evidence = f"made on {key.created:%Y-%m-%d}, {used}"
        off = f"aws iam update-access-key {of} --status Inactive    # back: --status Active"
        gone = f"aws iam delete-access-key {of}"
        if not key.active:
            text = f"access key {key.id} of {key.user} is inactive and still there"
            yield Finding(f"iam-key {key.id}", "info", text, evidence, gone, "shell")
        elif now - since >= UNUSED:
            text = f"access key {key.id} of {key.user} was not used for {(now - since).days} days"
            fix = f"{off}\n# when nobody missed it for a month: {gone}"
            yield Finding(f"iam-key {key.id}", "warning", text, evidence, fix, "shell")
        elif now - key.created >= ROTATED:
            text = f"access key {key.id} of {key.user} is {(now - key.created).days} days old"
            fix = f"aws iam create-access-key --user-name {key.user}\n# where the new one is in use: {off}"
            yield Finding(f"iam-key {key.id}", "warning", text, evidence, fix, "shell")


def unused_roles(roles: tuple[AssumedRole, ...], own: str, now: datetime) -> Iterator[Finding]:
    """Roles that nobody took on. ``own``: relight's, which is using itself just now."""
    idle = [r for r in roles if r.name != own and now - (r.used or r.created) >= UNUSED]
    if not idle:
        return
    lines = [f"{r.name}: {f'last used on {r.used:%Y-%m-%d}' if r.used else 'no use is recorded'}" for r in idle]
    what = "1 role was" if len(idle) == 1 else f"{len(idle)} roles were"
    deny = "--policy-arn arn:aws:iam::aws:policy/AWSDenyAll"
    yield Finding(
        "iam-roles-unused",
        "warning",
        f"{what} not used for {UNUSED.days} days: {', '.join(r.name for r in idle)}",
        "by RoleLastUsed, which goes back 400 days. A role for a disaster is used in one only: keep it, and drill it",
        "\n".join(
            f"aws iam attach-role-policy --role-name {r.name} {deny}    # back: detach-role-policy" for r in idle
        ),
        "shell",
        detail="\n".join(lines),
    )


def beyond(holder: Holder, asked: Needs, services: tuple[Service, ...] | None) -> Iterator[Finding]:
    """What relight's principal has more, or less, than ``deployments/iam`` has for the system's providers."""
    from tasks.aws_iam import covers  # noqa: PLC0415

    who, files = f"{holder.kind} {holder.name} (relight)", ", ".join(f"{p}.json" for p in asked.policies)
    needed = {a.lower() for a in asked.actions}
    more = sorted({(g.action, g.policy) for g in holder.grants if g.action.lower() not in needed})
    aside = "; ".join(("resources and conditions were not compared", *holder.unjudged))
    if more:
        used = None if services is None else {s.namespace: s.used for s in services}
        yield Finding(
            f"iam-beyond {holder.arn}",
            "warning",
            f"{who} may do {len(more)} things that this system does not need",
            f"compared with {files} of deployments/iam; {aside}",
            "take these out of its policies; what is needed of a wildcard stays by its own name, from deployments/iam",
            detail="\n".join(_more(action, policy, asked, used) for action, policy in more),
        )
    less = sorted(a for a in asked.actions if not any(covers(g.action, a) for g in holder.grants))
    if less:
        put = f"aws iam put-{holder.kind}-policy --{holder.kind}-name {holder.name}"
        lacking = [p for p in asked.policies if set(_allowed(p)) & set(less)]
        yield Finding(
            f"iam-lacks {holder.arn}",
            "warning",
            f"{who} has no permission for {len(less)} things that this system may need",
            f"compared with {files} of deployments/iam, unless a policy of a resource grants it; {aside}",
            "\n".join(
                f"{put} --policy-name relight-{p} --policy-document file://deployments/iam/{p}.json" for p in lacking
            )
            + "    # after its ids are filled in",
            "shell",
            detail="\n".join(less),
        )


def _more(action: str, policy: str, asked: Needs, used: dict[str, datetime | None] | None) -> str:
    from tasks.aws_iam import covers  # noqa: PLC0415

    said = f"{action}: {policy}"
    within = sorted(a for a in asked.actions if covers(action, a)) if "*" in action or "?" in action else []
    if within:
        said += f"; needed of it: {', '.join(within[:6])}{' …' if len(within) > 6 else ''}"
    space = action.partition(":")[0]
    if used is not None and space in used:
        last = used[space]
        said += f"; {space} was last asked on {last:%Y-%m-%d}" if last else f"; {space} was never asked in 400 days"
    return said
