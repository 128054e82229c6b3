"""Prometheus Alertmanager, webhook version 4 (notify/webhook/webhook.go, template/template.go).

The status of each alert counts, not the group's: a group is firing while any alert is, and with ``max_alerts`` even
that is computed after alerts were left out. ``startsAt`` is when the rule began to fire, after its ``for``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from flows.intake.event import Alert, Delivery, Kind, Malformed, moment, text, texts
from flows.intake.source import Source, SourceSettings
from tasks.quantities import Duration

KINDS: dict[str, Kind] = {"firing": "firing", "resolved": "resolved"}


class AlertmanagerSettings(SourceSettings):
    """As ``SourceSettings``.

    Attributes:
        api: base URL of the Alertmanager, polled for what its webhook lost; empty: it is not.
        before: what a rule waits before it fires (``for`` and a scrape interval): the outage began so long before
            ``startsAt``. A label ``for`` of an alert says it for that alert.
    """

    api: str = ""
    before: Duration = 0.0


class Alertmanager(Source):
    """Also what Grafana Mimir and VictoriaMetrics send."""

    name: ClassVar[str] = "alertmanager"
    Settings: ClassVar[type[SourceSettings]] = AlertmanagerSettings

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        if not isinstance(body, dict) or not isinstance(body.get("alerts"), list):
            raise Malformed("no `alerts`: is a `payload` configured in Alertmanager that replaces its own body?")
        if text(body.get("version")) not in ("4", ""):
            raise Malformed(f"version {text(body.get('version'))!r} of Alertmanager's webhook is not known; expected 4")
        truncated = bool(body.get("truncatedAlerts"))
        return tuple(self._one(one, body, delivery, truncated=truncated) for one in body["alerts"])

    def _one(self, one: Any, body: dict[str, Any], delivery: Delivery, *, truncated: bool) -> Alert:
        if not isinstance(one, dict):
            raise Malformed("an entry of `alerts` is no object")
        labels = texts(one.get("labels"))
        status = text(one.get("status")) or text(body.get("status"))
        annotations = texts(one.get("annotations"))
        links = {"generator": text(one.get("generatorURL")), "sender": text(body.get("externalURL"))}
        return Alert(
            kind=KINDS.get(status.lower(), "unknown"),
            fingerprint=text(one.get("fingerprint")),
            started_at=moment(one.get("startsAt")),
            # it looks whether the alert still fires when it sends, and queues nothing beyond a group interval
            observed_at=delivery.received_at,
            severity=labels.get("severity", ""),
            title=annotations.get("summary") or labels.get("alertname", ""),
            labels=labels,
            annotations=annotations,
            links={k: v for k, v in links.items() if v},
            truncated=truncated,
        )


SOURCE = Alertmanager
