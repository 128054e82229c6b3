"""Grafana Alerting (grafana/alerting ``receivers/webhook/v1``, ``http/webhook.go``), and what Grafana up to 8 sent.

With a timestamp header configured, Grafana signs ``time:body``: only then can nobody send a copy again, and only then
may an alert trigger. It does not retry by itself; what is lost comes with the next flush of the group.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake.event import Alert, Auth, Delivery, Kind, Malformed, epoch, moment, part, text, texts
from flows.intake.signatures import SignedSettings, by_hmac, plainly, timely
from flows.intake.source import Source, SourceSettings
from tasks.quantities import Duration

KINDS: dict[str, Kind] = {"firing": "firing", "resolved": "resolved"}
LEGACY: dict[str, Kind] = {"alerting": "firing", "alert": "firing", "ok": "resolved", "no_data": "no_data"}
BLIND: dict[str, Kind] = {"datasourcenodata": "no_data", "datasourceerror": "error"}
"""Alerts about Grafana's own sight: it lost its data source, which is what a partition looks like from there."""
REASONS: dict[str, Kind] = {"nodata": "no_data", "error": "error"}
"""A rule may be set to fire as itself when its data source is lost; the annotation says why it fires."""


class GrafanaSettings(SignedSettings):
    """As ``SignedSettings``.

    Attributes:
        signature_header: where the contact point puts its HMAC.
        timestamp_header: where it puts the time that it signs as well; empty: it signs the body alone, and its alerts
            trigger nothing.
        tolerance: how far that time may be from ours.
    """

    signature_header: str = "X-Grafana-Alerting-Signature"
    timestamp_header: str = ""
    tolerance: Duration = 300.0


class Grafana(Source):
    """A contact point of type webhook."""

    name: ClassVar[str] = "grafana"
    Settings: ClassVar[type[SourceSettings]] = GrafanaSettings

    @property
    def protected(self) -> bool:
        return bool(self.settings.secrets and self.settings.timestamp_header)

    async def authenticate(self, delivery: Delivery) -> Auth:
        settings: GrafanaSettings = self.settings
        header = settings.signature_header
        if not self.protected:
            return plainly(delivery, settings, header, [delivery.header(header)])
        at = delivery.header(settings.timestamp_header)
        message = at.encode() + b":" + delivery.body
        key = by_hmac(delivery, settings, header, [delivery.header(header)], message)
        timely(epoch(at), delivery, settings.tolerance, settings.timestamp_header)
        return Auth(method="hmac with time", key_id=key, verified=True, replay_protected=True)

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        if isinstance(body, dict) and "alerts" not in body and ("ruleId" in body or "evalMatches" in body):
            return (_legacy(body),)
        if not isinstance(body, dict) or not isinstance(body.get("alerts"), list):
            raise Malformed("no `alerts`: has the contact point a custom payload that replaces Grafana's own?")
        return tuple(self._one(one, body, delivery) for one in body["alerts"])

    def _one(self, one: Any, body: dict[str, Any], delivery: Delivery) -> Alert:
        if not isinstance(one, dict):
            raise Malformed("an entry of `alerts` is no object")
        labels, annotations = texts(one.get("labels")), texts(one.get("annotations"))
        kind = KINDS.get((text(one.get("status")) or text(body.get("status"))).lower(), "unknown")
        name = labels.get("alertname", "")
        if kind == "firing":
            kind = BLIND.get(name.lower()) or REASONS.get(annotations.get("grafana_state_reason", "").lower()) or kind
        links = {
            "generator": one.get("generatorURL"),
            "silence": one.get("silenceURL"),
            "dashboard": one.get("dashboardURL"),
            "sender": body.get("externalURL"),
        }
        return Alert(
            kind=kind,
            fingerprint=text(one.get("fingerprint")),
            started_at=moment(one.get("startsAt")),
            observed_at=delivery.received_at,  # it sends what is so at the flush, and queues nothing
            severity=labels.get("severity", ""),
            title=annotations.get("summary") or name,
            labels=labels | texts({"rule_uid": one.get("ruleUID")}),
            annotations=annotations,
            links=texts(links),
            truncated=bool(body.get("truncatedAlerts")),
            test=_test(name, one, body),
            trigger=self.protected and name.lower() not in BLIND,
        )


def _test(name: str, one: dict[str, Any], body: dict[str, Any]) -> str:
    """The Test button of a contact point. Its labels can be edited there, so whatever gives it away counts."""
    if name == "TestAlert":
        return "alertname TestAlert: the Test button of a contact point"
    if text(one.get("generatorURL")).startswith("?"):
        return "its rule has no address: the Test button of a contact point"
    group = text(body.get("groupKey"))
    if group and "{" not in group:
        return "its group is none of a notification policy: the Test button of a contact point"
    return ""


def _legacy(body: dict[str, Any]) -> Alert:
    """Up to Grafana 8: no start, so nothing tells one episode from the next. For people's eyes."""
    rule = body.get("ruleId")
    identity = text(int(rule)) if isinstance(rule, float) and rule.is_integer() else text(rule)  # 7 comes back as 7.0
    matches = body.get("evalMatches")
    tags = [texts(part(m).get("tags")) for m in matches] if isinstance(matches, list) else []
    name = text(body.get("ruleName"))
    return Alert(
        kind=LEGACY.get(text(body.get("state")).lower(), "unknown"),
        fingerprint=identity,
        title=text(body.get("title")) or name,
        labels=(tags[0] if len(tags) == 1 else {}) | texts({"alertname": name, "rule_id": identity}),
        annotations=texts({"message": body.get("message")}),
        links=texts({"generator": body.get("ruleUrl")}),
        test="the Test button of a notification channel"
        if text(body.get("title")) == "[Alerting] Test notification"
        else "",
        trigger=False,
        closes="fingerprint",
    )


SOURCE = Grafana
