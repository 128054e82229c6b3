"""Would an alarm of the source's own reach the receiver?"""

from __future__ import annotations

from tasks.metrics.protocol import Telling, Topic
from tasks.readiness import Asked, Check, Finding, Level, Part


async def told(asked: Asked, part: Part) -> list[Finding]:
    """Each site's alarms have a topic of their region, may publish to it, and the receiver is subscribed.

    What fails for the active site warns for the other one: a failure there starts no run.
    """
    if not isinstance(part.provider, Telling):
        return []
    found = []
    for site, bad in ((asked.active, "failing"), (asked.target, "warning")):
        topics = await part.provider.topics(site)
        if topics is None:
            continue
        level: Level = "failing" if bad == "failing" else "warning"
        if not topics:
            says = f"no alarm of {site} is told to anybody: there is no topic of its region in alarm_actions"
            found.append(part.found("alarms", level, says, "make a topic there, and name it in alarm_actions", site))
        found += [_of(part, t, site, level) for t in topics]
    return found


def _of(part: Part, topic: Topic, site: str, level: Level) -> Finding:
    if not topic.exists or topic.may_publish is False:
        fix = "let cloudwatch.amazonaws.com do sns:Publish (docs/metrics.md)" if topic.exists else "make it"
        return part.found("alarms", level, f"alarms of {site} do not get into {topic.arn}: {topic.why}", fix, site)
    if not topic.receiver:
        waits = f"; never confirmed: {', '.join(topic.pending)}" if topic.pending else ""
        says = f"relight's receiver is not subscribed to {topic.arn} ({len(topic.confirmed)} others are){waits}"
        fix = "subscribe its URL over HTTPS while it runs: it confirms by itself (docs/alerts.md)"
        return part.found("alarms", level, says, fix, site)
    if topic.may_publish is None:
        return part.found("alarms", "unknown", f"may alarms publish to {topic.arn}? {topic.why}", "send one", site)
    return part.found("alarms", "ok", f"alarms of {site} reach the receiver through {topic.arn}", site=site)


async def muted(asked: Asked, part: Part) -> list[Finding]:
    """What keeps alarms back during maintenance is there, and is not on."""
    if not isinstance(part.provider, Telling):
        return []
    found = []
    for site in (asked.active, asked.target):
        now = await part.provider.muted(site)
        if now is None:
            continue
        if now.state is None:
            says = f"alarm {now.alarm}, which is to keep alarms back in maintenance, does not exist at {site}"
            found.append(part.found("suppressor", "warning", says, "make it, or take it out of the settings", site))
        elif now.state == "ALARM":
            says = f"alarm {now.alarm} is in ALARM: composite alarms of {site} are told to nobody"
            found.append(part.found("suppressor", "warning", says, "end the maintenance, if it is over", site))
        else:
            found.append(part.found("suppressor", "ok", f"nothing keeps alarms of {site} back", site=site))
    return found


CHECKS: tuple[Check, ...] = (told, muted)
