"""An alert in relight's own words, for senders whose format is ours to say: Standard Webhooks and CloudEvents."""

from __future__ import annotations

from typing import Any, get_args

from flows.intake.event import Alert, Evidence, Kind, Malformed, epoch, moment, text, texts

WORDS = {
    "status": "`firing` or `resolved`; also acknowledged, no_data, error, suppressed, test; anything else is unknown",
    "fingerprint": "the same for every episode of one alert",
    "episode": "another for each episode; without it, started_at tells them apart",
    "started_at": "when it began: ISO 8601 with a zone, or seconds since 1970",
    "observed_at": "when it was last seen to be so",
    "severity": "for people",
    "title": "for people",
    "labels": "what rules match",
    "annotations": "for people",
    "links": "for people",
    "vantages_failed": "from how many places it was seen to fail",
    "vantages_total": "of how many",
    "suppressed_by": "the maintenance window it falls into",
}
"""The keys of an alert."""


def read(data: Any, *, kind: str = "", at: Any = None) -> Alert:
    """An alert of our own words. ``kind``: what its sender says outside of it; ``at``: when it was sent.

    Raises Malformed.
    """
    if not isinstance(data, dict):
        raise Malformed("`data` is no object with the keys of an alert: docs/alerts.md has them")
    said = kind or text(data.get("status")).lower()
    began, observed = _time(data.get("started_at")), _time(data.get("observed_at")) or _time(at)
    found: Kind = next((k for k in get_args(Kind) if k == said), "unknown")
    labels = texts(data.get("labels"))
    return Alert(
        kind=found,
        fingerprint=text(data.get("fingerprint")),
        cycle=text(data.get("episode")),
        started_at=began,
        observed_at=observed,
        severity=text(data.get("severity")) or labels.get("severity", ""),
        title=text(data.get("title")) or labels.get("alertname", ""),
        labels=labels,
        annotations=texts(data.get("annotations")),
        links=texts(data.get("links")),
        evidence=Evidence(
            vantages_failed=_count(data, "vantages_failed"), vantages_total=_count(data, "vantages_total")
        ),
        suppressed_by=text(data.get("suppressed_by")),
        test="its status is test" if found == "test" else "",
        trigger=bool(began or observed),
        closes="episode" if began or text(data.get("episode")) else "fingerprint",
    )


def _time(value: Any) -> Any:
    return epoch(value) if isinstance(value, int | float) else moment(value)


def _count(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000 else None
