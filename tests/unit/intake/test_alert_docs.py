"""docs/alerts.md knows every source, and what is shipped for the senders is read back by its source."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.intake import plain
from flows.intake.event import Auth, Delivery, normalise
from flows.intake.source import SourceSettings, known, of

ROOT = Path(__file__).resolve().parents[3]
ALERTS = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
SHIPPED = ROOT / "deployments" / "alerts"
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
MS = str(int(NOW.timestamp() * 1000))


def rows(heading):
    """First cell -> the whole row of the table below ``heading``."""
    table = ALERTS.split(heading, 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|(.*)$", table, re.MULTILINE)
    return {key: row for cell, row in found for key in re.findall(r"`(\w+)`", cell)}


def yaml(file):
    """A YAML file; CloudFormation's own tags are left as they are."""
    loader = YAML(typ="rt")
    return loader.load((SHIPPED / file).read_text(encoding="utf-8"))


def event(name, body, **settings):
    source = of(name)(of(name).Settings(source=name, **settings))
    delivery = Delivery("here", json.dumps(body).encode(), NOW)
    (alert,) = source.read(body, delivery)
    return normalise(alert, delivery, Auth(method="token", verified=True), name)


def filled(file, facts, pattern):
    """A shipped template as its sender fills it in: what ``facts`` does not know stays as it is written."""
    template = (SHIPPED / file).read_text(encoding="utf-8")
    return json.loads(re.sub(pattern, lambda m: facts.get(m[1], m[0]), template))


def test_every_source_is_documented_with_its_own_settings():
    documented = rows("## Sources")
    assert set(documented) == set(known())
    for name, cls in known().items():
        own = set(cls.Settings.model_fields) - set(SourceSettings.model_fields)
        assert [s for s in own if f"`{s}`" not in documented[name]] == [], name


def test_the_settings_of_every_endpoint_are_documented():
    assert set(rows("## Settings of every endpoint")) == set(SourceSettings.model_fields) | {"secrets"}


def test_every_setting_says_what_it_is():
    for cls in known().values():
        written = " ".join(c.__doc__ or "" for c in cls.Settings.__mro__ if issubclass(c, SourceSettings))
        own = set(cls.Settings.model_fields) - set(SourceSettings.model_fields)
        assert [s for s in own if not re.search(rf"\b{s}:", written)] == [], cls.Settings


def test_our_own_words_are_documented():
    assert set(rows("## An alert in our own words")) == set(plain.WORDS)


def test_the_endpoints_that_are_shown_can_be_loaded():
    block = re.search(r"```yaml\n(sources:.*?)```", ALERTS, re.DOTALL)
    endpoints = YAML(typ="safe").load(block[1])["sources"]
    assert {e["source"] for e in endpoints.values()} == set(known())
    for given in endpoints.values():
        of(given["source"]).Settings.model_validate(given)


def test_what_is_shipped_is_named():
    assert [p.name for p in SHIPPED.iterdir() if p.name not in ALERTS] == []
    assert [n for n in re.findall(r"deployments/alerts/([\w.-]+\w)", ALERTS) if not (SHIPPED / n).is_file()] == []


DATADOG = {
    "ALERT_ID": "42",
    "ALERT_CYCLE_KEY": "9f3b",
    "AGGREG_KEY": "77aa",
    "ALERT_TRANSITION": "Triggered",
    "ALERT_SCOPE": "host:db1,site:west",
    "TAGS": "system:shop,monitor",
    "EVENT_TITLE": "[Triggered on {host:db1}] Primary is gone",
    "EVENT_MSG": "%%% nobody answers %%%",
    "DATE": MS,
    "LAST_UPDATED": MS,
}


def test_datadogs_template():
    found = event("datadog", filled("datadog.json", DATADOG, r"\$([A-Z_]+)"))
    assert (found.kind, found.fingerprint, found.started_at, found.may_trigger) == ("firing", "77aa", NOW, True)
    wanted = {"alertname": "Primary is gone", "system": "shop", "site": "west", "host": "db1", "alert_id": "42"}
    assert wanted == found.labels
    tested = {**DATADOG, "EVENT_TITLE": "[TEST] " + DATADOG["EVENT_TITLE"]}
    assert event("datadog", filled("datadog.json", tested, r"\$([A-Z_]+)")).is_test
    tested = {**DATADOG, "EVENT_MSG": "Test notification triggered by a@example.com."}
    assert event("datadog", filled("datadog.json", tested, r"\$([A-Z_]+)")).is_test
    nothing = event("datadog", filled("datadog.json", {}, r"\$([A-Z_]+)"))
    assert (nothing.kind, nothing.labels, nothing.may_trigger) == ("unknown", {}, False)


def test_uptimerobots_template():
    facts = {
        "monitorID": "7",
        "alertType": "1",
        "alertDateTime": str(int(NOW.timestamp())),
        "monitorFriendlyName": "shop",
    }
    found = event("uptimerobot", filled("uptimerobot.json", facts, r"\*(\w+)\*"))
    assert (found.kind, found.fingerprint, found.started_at, found.may_trigger) == ("firing", "7", NOW, True)
    assert found.annotations == {}
    assert event("uptimerobot", filled("uptimerobot.json", {}, r"\*(\w+)\*")).kind == "unknown"


def test_new_relics_template():
    facts = {"json issueId": '"i-1"', "json state": '"ACTIVATED"', "createdAt": MS, "updatedAt": MS,
             "json accumulations.conditionName": '["Primary is gone"]'}  # fmt: skip
    template = (SHIPPED / "newrelic.json").read_text(encoding="utf-8")
    body = json.loads(re.sub(r"\{\{ (.*?) \}\}", lambda m: facts.get(m[1], "null"), template))
    found = event("newrelic", body)
    assert (found.kind, found.fingerprint, found.started_at, found.may_trigger) == ("firing", "i-1", NOW, True)
    assert found.labels == {"alertname": "Primary is gone"}


def zabbix(facts):
    (media,) = yaml("zabbix.yaml")["zabbix_export"]["media_types"]
    given = {
        p["name"]: re.sub(r"\{([A-Z.]+)\}", lambda m: facts.get(m[1], m[0]), p["value"]) for p in media["parameters"]
    }
    return {k: v for k, v in given.items() if k not in ("url", "token")}  # as its script does


def test_zabbixs_media_type():
    at = str(int(NOW.timestamp()))
    facts = {"EVENT.ID": "9", "EVENT.VALUE": "1", "EVENT.UPDATE.STATUS": "0", "EVENT.NAME": "Primary is gone",
             "EVENT.TAGSJSON": '[{"tag": "system", "value": "shop"}]', "HOST.HOST": "db1"}  # fmt: skip
    found = event("zabbix", zabbix({**facts, "EVENT.TIMESTAMP": at}))
    assert (found.kind, found.started_at, found.may_trigger) == ("firing", NOW, True)
    assert found.labels == {"alertname": "Primary is gone", "system": "shop", "host": "db1"}
    older = {**facts, "EVENT.DATE": "2026.11.24", "EVENT.TIME": "13:00:00"}
    assert event("zabbix", zabbix(older), time_zone="Europe/Vienna").started_at == NOW
    assert event("zabbix", zabbix(older)).started_at_basis == "received"
    ended = event("zabbix", zabbix({**facts, "EVENT.TIMESTAMP": at, "EVENT.VALUE": "0"}))
    assert (ended.kind, ended.episode_key) == ("resolved", found.episode_key)
    assert event("zabbix", zabbix({})).is_test


def test_alertmanagers_route_has_the_timing_of_a_failover():
    shipped = yaml("alertmanager.yaml")
    route, (_, receiver) = shipped["route"]["routes"][0], shipped["receivers"]
    assert (route["group_wait"], route["group_interval"], route["repeat_interval"]) == ("0s", "30s", "5m")
    (hook,) = receiver["webhook_configs"]
    assert (hook["send_resolved"], hook["max_alerts"]) == (True, 0)


def test_grafanas_contact_point_signs_the_time():
    settings = yaml("grafana-contact-point.yaml")["contactPoints"][0]["receivers"][0]["settings"]
    given = {"secrets": ("env:HMAC",), "timestamp_header": settings["hmacConfig"]["timestampHeader"]}
    source = of("grafana")(of("grafana").Settings(source="grafana", **given))
    assert settings["hmacConfig"]["header"] == source.settings.signature_header
    assert source.protected


@pytest.mark.parametrize("file", ["sns.yaml", "eventbridge.yaml"])
def test_cloudformation_keeps_what_matters(file):
    resources = yaml(file)["Resources"]
    if file == "sns.yaml":
        assert resources["Subscription"]["Properties"]["RawMessageDelivery"] is False
        assert resources["Topic"]["Properties"]["SignatureVersion"] == "2"
    else:
        (target,) = resources["Rule"]["Properties"]["Targets"]
        assert target["RetryPolicy"]["MaximumEventAgeInSeconds"] == SourceSettings(source="x").max_age
        key = resources["Connection"]["Properties"]["AuthParameters"]["ApiKeyAuthParameters"]["ApiKeyName"]
        assert key == "X-Relight-Token"
