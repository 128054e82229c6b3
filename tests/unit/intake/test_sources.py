"""What each sender really sends, and what it must be read as; written down by hand."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.intake.event import Auth, Delivery, Malformed, epoch, normalise, text
from flows.intake.source import known, of

PAYLOADS = Path(__file__).with_name("payloads")
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
TOPIC = "arn:aws:sns:eu-west-1:123456789012:alarms"
AUTH = Auth(method="token", verified=True)


def a(name, **settings):
    """The source called ``name``."""
    if name == "sns":
        settings.setdefault("topics", (TOPIC,))
    return of(name)(of(name).Settings(source=name, **settings))


def delivery(body=b"{}", headers=None, **more):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Delivery("here", raw, more.pop("at", NOW), headers=headers or {}, **more)


def payload(name):
    return json.loads((PAYLOADS / f"{name}.json").read_bytes())


def read(name, body, headers=None, **settings):
    return a(name, **settings).read(body, delivery(headers=headers))


def one(name, body, headers=None, **settings):
    (found,) = read(name, body, headers, **settings)
    return found


def event(name, body, headers=None, **settings):
    return normalise(one(name, body, headers, **settings), delivery(body, headers), AUTH, name)


def utc(*when):
    return datetime(*when, tzinfo=UTC)


# file, source, settings -> kind, fingerprint, cycle, start, severity, some labels, may it trigger
READ = [
    ("alertmanager/firing_no_fingerprint_tz_offset", "alertmanager", {},
     ("firing", "", "", utc(2017, 8, 3, 19, 17, 37, 804000), "critical", {"alertname": "thing_dead"}, True)),
    ("alertmanager/msteams_no_alert_status", "alertmanager", {},
     ("firing", "", "", utc(2018, 3, 7, 11, 33, 21, 873077), "warning", {"job": "docker_nodes"}, True)),
    ("grafana/grafana12_contact_point_TEST", "grafana", {"secrets": ("env:S",), "timestamp_header": "X-T"},
     ("firing", "c4edaaf9f9f839b0", "", utc(2026, 5, 5, 13, 4, 57, 622813), "", {"instance": "Grafana"}, True)),
    ("grafana/legacy_alerting", "grafana", {"secrets": ("env:S",), "timestamp_header": "X-T"},
     ("firing", "7", "", None, "", {"alertname": "Zeta CPU alert", "instance": "zeta.domain"}, False)),
    ("cloudwatch_sns/notification_insufficient_data", "sns", {},
     ("no_data", "", "", utc(2019, 5, 13, 8, 41, 43, 548000), "",
      {"alertname": "notificationCountAlarm", "TopicName": "alerta-test", "namespace": "AWS/SNS"}, True)),
    ("cloudwatch_sns/cloudforet_param1", "sns", {},
     ("firing", "arn:aws:cloudwatch:ap-northeast-2:257706363616:alarm:EC2-CPU", "",
      utc(2021, 6, 23, 8, 41, 6, 622000), "",
      {"region": "ap-northeast-2", "account": "257706363616", "InstanceId": "i-0f672ea50a80cda4b"}, True)),
    ("cloudwatch_sns/signed_real_v1_http_0", "sns", {},
     ("unknown", "", "", utc(2022, 7, 28, 21, 23, 58, 317000), "", {}, True)),
    ("cloudwatch_eventbridge/docs_state_change_for_a_single_metric_alarm", "eventbridge", {},
     ("firing", "arn:aws:cloudwatch:us-east-1:123456789012:alarm:ServerCpuTooHigh", "",
      utc(2019, 10, 2, 17, 4, 40, 989000), "",
      {"alertname": "ServerCpuTooHigh", "InstanceId": "i-12345678901234567", "region": "us-east-1"}, True)),
    ("cloudwatch_eventbridge/docs_state_change_for_a_composite_alarm_with_a_suppressor_alarm", "eventbridge", {},
     ("suppressed", "arn:aws:cloudwatch:us-east-1:123456789012:alarm:ServiceAggregatedAlarm", "",
      utc(2022, 7, 22, 15, 57, 45, 394000), "", {"alertname": "ServiceAggregatedAlarm"}, True)),
    ("pagerduty/incident_triggered", "pagerduty", {},
     ("firing", "PFQZPSY", "", utc(2021, 6, 4, 13, 35, 29, 781000), "high",
      {"service": "pig208", "service_id": "PA2P440", "agent_type": "user_reference"}, False)),
    ("pagerduty/go_pagerduty_signed_raw", "pagerduty", {},
     ("unknown", "PGR0VU2", "", None, "P1", {"event_type": "incident.priority_updated"}, False)),
    ("datadog/codenow_triggered", "datadog", {},
     ("firing", "", "", utc(2015, 11, 25, 7, 12, 10), "critical",
      {"alertname": "Dock is almost out of memory...", "role": "dock", "org": "6585"}, True)),
    ("opsgenie/create", "opsgenie", {},
     ("firing", "alert-alias", "ec03dad6-62c8-4c94-b38b-d88f398e900f", utc(2017, 8, 14, 11, 25, 56, 288000), "P3",
      {"entity": "Server", "vip": "true"}, True)),
    ("uptimerobot/monitor_down", "uptimerobot", {},
     ("firing", "server1.example.com", "", None, "", {"alertname": "Web Server", "state": "Down"}, False)),
    ("betterstack/acknowledged_before_started", "betterstack", {},
     ("firing", "1", "", utc(2020, 10, 21, 10, 51, 28, 151000), "", {"monitor_id": "4", "regions": "as,eu,us"}, True)),
    ("sentry/metric_alert_resolved", "sentry", {},
     ("resolved", "4", "4", utc(2020, 9, 13, 12, 26, 40), "", {"alertname": "Too many errors"}, True)),
    ("newrelic/workflow_default_activated", "newrelic", {},
     ("firing", "c5faa7e6-7b54-402d-af79-f99601e0278c", "c5faa7e6-7b54-402d-af79-f99601e0278c",
      utc(2024, 4, 22, 3, 5, 31, 352000), "critical",
      {"alertname": "Zulip Server Low Storage", "policy": "Golden Signals", "entities": "zulip_app"}, True)),
    ("zabbix/zulip_disaster", "zabbix", {},
     ("firing", "10528", "10528", None, "disaster", {"host": "www.example.com"}, False)),
    ("gcp_monitoring/agilicus_uptime_open", "gcp", {},
     ("firing", "0.ligwyr056k2l", "0.ligwyr056k2l", utc(2020, 1, 20, 22, 30, 44), "",
      {"alertname": "api - noc - users", "host": "MYHOST", "resource_type": "uptime_url"}, True)),
    ("gcp_monitoring/closed_v1_2", "gcp", {},
     ("resolved", "0.m2d61b3s6d5d", "0.m2d61b3s6d5d", utc(2021, 5, 11, 17, 35, 33), "", {}, True)),
    ("gcp_monitoring/keep_database_latency", "gcp", {},
     ("firing", "db-345", "db-345", None, "warning", {"team": "database", "database_id": "prod-mysql-main"}, False)),
    ("azure_monitor/common_schema_metric_resolved", "azure", {},
     ("resolved", None, None, utc(2019, 3, 22, 13, 58, 24, 371321), "Sev3",
      {"alertname": "WCUS-R2-Gen2", "target": "wcus-r2-gen2", "metric": "Percentage CPU"}, True)),
]  # fmt: skip


@pytest.mark.parametrize(("file", "name", "settings", "expected"), READ, ids=[r[0] for r in READ])
def test_what_was_really_sent(file, name, settings, expected):
    alert = one(name, payload(file), **settings)
    kind, fingerprint, cycle, started, severity, labels, trigger = expected
    assert (alert.kind, alert.started_at, alert.severity, alert.trigger) == (kind, started, severity, trigger)
    assert labels.items() <= alert.labels.items()
    if fingerprint is not None:
        assert (alert.fingerprint, alert.cycle) == (fingerprint, cycle)


def test_every_payload_is_read_somewhere():
    used = {r[0] for r in READ} | {"alertmanager/oncall_group_of_3", "grafana/unified_two_firing_tz_offset"}
    used |= {"cloudwatch_sns/docs_http_1", "cloudwatch_sns/docs_http_2"}
    there = {str(p.relative_to(PAYLOADS).with_suffix("")) for p in PAYLOADS.rglob("*.json")}
    assert {f for f in there - used if not f.startswith("alertmanager_lab/")} == set()


@pytest.mark.parametrize("file", sorted(PAYLOADS.glob("alertmanager_lab/*.json")), ids=lambda p: p.stem)
def test_what_the_labs_alertmanager_sent(file):
    sent = json.loads(file.read_bytes())["body"]
    found = read("alertmanager", sent)
    assert [x.kind for x in found] == [x["status"] for x in sent["alerts"]]
    assert {x.kind for x in found} == {"resolved" if "resolved" in file.stem else "firing"}
    assert all(x.started_at and len(x.fingerprint) == 16 and not x.truncated for x in found)


def test_a_group_of_several():
    assert [x.fingerprint for x in read("alertmanager", payload("alertmanager/oncall_group_of_3"))] == [
        "f404ecabc8dd5cd7",
        "f8f08d4e32c61a9d",
    ]
    both = read("grafana", payload("grafana/unified_two_firing_tz_offset"))
    assert [x.started_at for x in both] == [utc(2021, 10, 12, 7, m, 3, 157076) for m in (51, 56)]


# ---- tests are tests ----

TESTS = [
    ("grafana", payload("grafana/grafana12_contact_point_TEST"), {}),
    ("grafana", {"alerts": [{"status": "firing", "labels": {"alertname": "Mine"}, "generatorURL": "?orgId=1"}]}, {}),
    ("grafana", {"alerts": [{"status": "firing", "labels": {"alertname": "Mine"}}], "groupKey": "webhook-c4-17"}, {}),
    ("datadog", {"alert_transition": "Triggered", "title": "[TEST] [Triggered] Database is gone", "date": "1"}, {}),
    ("datadog", {"alert_transition": "Triggered", "title": "x", "body": "Test notification triggered by a@b.c"}, {}),
    ("pagerduty", {"event": {"event_type": "pagey.ping", "data": {"message": "Hello from your friend Pagey!"}}}, {}),
    ("zabbix", {"event_id": "{EVENT.ID}", "value": "{EVENT.VALUE}", "name": "{EVENT.NAME}"}, {}),
    ("gcp", {"version": "test", "incident": {"state": "OPEN", "incident_id": "f2e08c333dc64cb09f75eaab355393bz"}}, {}),
    ("azure", {"schemaId": "azureMonitorCommonAlertSchema", "data": {"essentials": {
        "alertId": "/subscriptions/11111111-1111-1111-1111-111111111111/providers/x/alerts/1",
        "monitorCondition": "Fired", "firedDateTime": NOW.isoformat()}}}, {}),
    ("standardwebhooks", {"data": {"status": "test", "started_at": NOW.isoformat()}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "settings"), TESTS)
def test_a_test_button_never_fails_anything_over(name, body, settings):
    found = event(name, body, **settings)
    assert found.is_test
    assert found.test_why
    assert found.kind != "firing"


def test_a_sender_without_a_test_of_its_own_has_one_by_its_url_or_a_header():
    body = payload("newrelic/workflow_default_activated")
    read_as = one("newrelic", body)
    for asked in (delivery(body, query={"test": "1"}), delivery(body, {"x-relight-test": "1"})):
        found = normalise(read_as, asked, AUTH, "newrelic")
        assert (found.kind, found.is_test) == ("test", True)
    assert not normalise(read_as, delivery(body), AUTH, "newrelic").is_test


# ---- unknown stays unknown ----

UNKNOWN = [
    ("alertmanager", {"alerts": [{"status": "exploding"}]}),
    ("grafana", {"alerts": [{"status": "exploding", "labels": {"alertname": "x"}}]}),
    ("grafana", {"ruleId": 1, "state": "pending"}),
    ("sns", {"Type": "Notification", "Message": '{"NewStateValue": "PURPLE", "AlarmName": "x"}'}),
    ("sns", {"Type": "Notification", "Message": '{"something": "else"}'}),
    ("eventbridge", {"detail-type": "CloudWatch Alarm State Change", "source": "aws.cloudwatch",
                     "detail": {"state": {"value": "PURPLE"}}}),
    ("eventbridge", {"detail-type": "CloudWatch Alarm State Change", "source": "somebody.else",
                     "detail": {"state": {"value": "ALARM"}}}),
    ("eventbridge", {"detail-type": "EC2 Instance State-change Notification", "source": "aws.ec2"}),
    ("pagerduty", {"event": {"event_type": "incident.annotated", "data": {"id": "P"}}}),
    ("datadog", {"alert_transition": "Warn"}),
    ("datadog", {"alert_transition": "Renotify"}),
    ("datadog", {"alert_transition": "$ALERT_TRANSITION"}),
    ("opsgenie", {"action": "Delete", "alert": {"alias": "x"}}),
    ("uptimerobot", {"alertType": "3"}),
    ("uptimerobot", {"alertType": "*alertType*"}),
    ("betterstack", {"event": "comment", "data": {"id": "1", "type": "incident"}}),
    ("betterstack", {"event": "started", "data": {"id": "1", "type": "monitor"}}),
    ("sentry", {"action": "warning", "data": {"metric_alert": {"id": "4"}}}),
    ("sentry", {"action": "created", "data": {"issue": {}}}),
    ("newrelic", {"id": "1", "state": "DEACTIVATED"}),
    ("zabbix", {"value": "2", "event_id": "1"}),
    ("zabbix", {"value": "1", "event_id": "1", "update_status": "1"}),
    ("gcp", {"incident": {"state": "unspecified"}}),
    ("azure", {"schemaId": "azureMonitorCommonAlertSchema", "data": {"essentials": {"monitorCondition": "Activated"}}}),
    ("standardwebhooks", {"data": {"status": "burning"}}),
    ("standardwebhooks", {"data": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body"), UNKNOWN)
def test_what_is_not_known_is_unknown(name, body):
    found = event(name, body)
    assert found.kind == "unknown"


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        ("grafana", {"alerts": [{"status": "firing", "labels": {"alertname": "DatasourceNoData"}}]}, "no_data"),
        ("grafana", {"alerts": [{"status": "firing", "labels": {"alertname": "DatasourceError"}}]}, "error"),
        ("grafana", {"alerts": [{"status": "firing", "labels": {"alertname": "Down"},
                                 "annotations": {"grafana_state_reason": "NoData"}}]}, "no_data"),
        ("grafana", {"alerts": [{"status": "resolved", "labels": {"alertname": "DatasourceNoData"}}]}, "resolved"),
        ("grafana", {"ruleId": 7.0, "state": "no_data"}, "no_data"),
        ("datadog", {"alert_transition": "No Data"}, "no_data"),
        ("datadog", {"alert_transition": "Re-Triggered"}, "firing"),
        ("datadog", {"alert_transition": "Recovered"}, "resolved"),
        ("pagerduty", {"event": {"event_type": "incident.reopened", "data": {"id": "P"}}}, "firing"),
        ("pagerduty", {"event": {"event_type": "incident.acknowledged", "data": {"id": "P"}}}, "acknowledged"),
        ("pagerduty", {"event": {"event_type": "service.updated", "data": {"id": "P"}}}, "config"),
        ("eventbridge", {"detail-type": "CloudWatch Alarm Configuration Change", "source": "aws.cloudwatch",
                         "detail": {"state": {"value": "ALARM"}}}, "config"),
        ("opsgenie", {"action": "Acknowledge", "alert": {"alias": "x"}}, "acknowledged"),
        ("uptimerobot", {"alert_type": "2"}, "resolved"),
        ("uptimerobot", {"alertType": 1}, "firing"),
        ("zabbix", {"value": "1", "event_id": "1", "update_status": "1", "acknowledged": "Yes"}, "acknowledged"),
        ("zabbix", {"value": "0", "event_id": "1", "update_status": "0"}, "resolved"),
        ("newrelic", {"id": "1", "state": "CLOSED"}, "resolved"),
    ],
)  # fmt: skip
def test_what_each_word_means(name, body, kind):
    assert event(name, body).kind == kind


MALFORMED = [
    ("alertmanager", {}),
    ("grafana", {"title": "x"}),
    ("grafana", {"alerts": [3]}),
    ("sns", {"Type": "Notification"}),
    ("sns", {"Records": []}),
    ("sns", {"AlarmName": "x"}),
    ("eventbridge", {"alarm": "x"}),
    ("eventbridge", {"detail-type": "CloudWatch Alarm State Change", "source": "aws.cloudwatch", "detail": {}}),
    ("pagerduty", {"messages": []}),
    ("datadog", {"title": "x", "event_type": "y", "date": "1", "body": "z", "id": "1"}),  # Datadog's own template
    ("opsgenie", {"action": "Create"}),
    ("uptimerobot", {"monitorID": "1"}),
    ("betterstack", {"data": {"id": "1"}}),
    ("sentry", {"action": "critical"}),
    ("newrelic", {"id": "1"}),
    ("zabbix", {"name": "x"}),
    ("gcp", {"version": "1.2"}),
    ("gcp", {"message": {"data": "not base64!"}}),
    ("azure", {"schemaId": "AzureMonitorMetricAlert", "data": {"status": "Activated"}}),
    ("azure", {"schemaId": "azureMonitorCommonAlertSchema", "data": {}}),
    ("cloudevents", {"data": {}}),
    ("standardwebhooks", {"type": "x"}),
    ("standardwebhooks", {"data": [1]}),
]


@pytest.mark.parametrize(("name", "body"), MALFORMED)
def test_what_lacks_its_facts_is_malformed(name, body):
    with pytest.raises(Malformed):
        read(name, body)


@pytest.mark.parametrize("name", sorted(known()))
@pytest.mark.parametrize("body", [None, [], 3, "x", {}, True])
def test_what_is_no_alert_at_all_is_malformed(name, body):
    with pytest.raises(Malformed):
        read(name, body)


# ---- the traps of each ----


def test_grafana_triggers_only_where_nobody_can_send_a_copy():
    body = payload("grafana/unified_two_firing_tz_offset")
    assert [x.trigger for x in read("grafana", body, secrets=("env:S",), timestamp_header="X-T")] == [True, True]
    for settings in (
        {"secrets": ("env:S",)},
        {"tokens": ("env:T",), "timestamp_header": "X-T"},
        {"tokens": ("env:T",)},
    ):
        assert [x.trigger for x in read("grafana", body, **settings)] == [False, False]


def test_grafanas_legacy_ids_come_back_as_floats():
    assert one("grafana", {"ruleId": 7.0, "state": "ok"}).fingerprint == "7"


def test_a_suppressed_alarm_says_by_what():
    body = payload("cloudwatch_eventbridge/docs_state_change_for_a_composite_alarm_with_a_suppressor_alarm")
    assert one("eventbridge", body).suppressed_by == "WaitPeriod"
    for by in ("Alarm", "ExtensionPeriod"):
        body["detail"]["state"]["actionsSuppressedBy"] = by
        assert one("eventbridge", body).kind == "suppressed"


def test_an_alarm_that_ended_is_tied_to_when_it_began():
    body = payload("cloudwatch_eventbridge/docs_state_change_for_a_single_metric_alarm")
    fired = event("eventbridge", body)
    detail = body["detail"]
    detail["previousState"], detail["state"] = (
        detail["state"],
        {"value": "OK", "timestamp": "2019-10-02T18:00:00.000+0000"},
    )
    ended = event("eventbridge", body)
    assert (ended.kind, ended.episode_key, ended.closes) == ("resolved", fired.episode_key, "fingerprint")
    assert ended.observed_at == utc(2019, 10, 2, 18)


def test_an_alarm_given_to_lambda_and_an_event_through_a_topic_are_read_as_well():
    state = {"value": "ALARM", "timestamp": "2026-11-24T11:59:00.000+0000", "reason": "3 out of the last 5 datapoints"}
    body = {"source": "aws.cloudwatch", "alarmArn": "arn:aws:cloudwatch:eu-west-1:1:alarm:db", "accountId": "1",
            "alarmData": {"alarmName": "db", "state": state}}  # fmt: skip
    found = one("eventbridge", body)
    assert (found.kind, found.labels["region"], found.evidence.m_of_n) == ("firing", "eu-west-1", "3 of 5")
    assert one("sns", {"Type": "Notification", "Message": json.dumps(body)}) == found
    wrapped = {"Records": [{"EventSource": "aws:sns", "Sns": {"Type": "Notification", "Message": json.dumps(body)}}]}
    assert one("sns", wrapped) == found


def test_metric_maths_and_anomalies_have_no_dimensions():
    alarm = {"AlarmName": "x", "NewStateValue": "OK", "Trigger": {"Metrics": [{"Id": "m1"}], "Dimensions": None}}
    found = one("sns", {"Type": "Notification", "Message": json.dumps(alarm)})
    assert (found.kind, found.closes) == ("resolved", "fingerprint")


def test_pagerduty_triggers_for_machines_unless_told_otherwise_and_for_named_services():
    body = payload("pagerduty/incident_triggered")
    assert one("pagerduty", body, people=True).trigger
    assert not one("pagerduty", body, people=True, services=("OTHER",)).trigger
    assert one("pagerduty", body, people=True, services=("PA2P440",)).trigger
    body["event"]["agent"] = {"type": "service_reference"}
    assert one("pagerduty", body).trigger


def test_a_reopened_incident_is_another_episode_and_its_end_ends_it():
    def said(what, **data):
        facts = {"id": "P", "created_at": "2026-11-24T10:00:00Z", **data}
        return event("pagerduty", {"event": {"id": what, "event_type": f"incident.{what}", "data": facts}})

    first, again = said("triggered"), said("reopened", reopened_at="2026-11-24T11:00:00Z")
    assert first.episode_key != again.episode_key
    ended = said("resolved")
    assert (ended.episode_key, ended.closes) == (first.episode_key, "fingerprint")


def test_datadogs_cycle_ties_the_end_to_the_beginning():
    base = {"aggreg_key": "k", "alert_cycle_key": "c", "title": "[Triggered] Database"}
    fired = event("datadog", {**base, "alert_transition": "Triggered", "date": "1764000000000"})
    ended = event("datadog", {**base, "alert_transition": "Recovered", "date": "1764000060000"})
    assert fired.episode_key == ended.episode_key
    assert fired.labels["alertname"] == "Database"


def test_new_relic_is_as_fresh_as_its_last_update():
    found = one("newrelic", payload("newrelic/workflow_default_activated"))
    assert found.observed_at - found.started_at == timedelta(milliseconds=14577347)


def test_an_issue_that_warned_first_still_triggers():
    def said(action):
        alert = {"id": "4", "date_started": NOW.isoformat(), "alert_rule": {"name": "x"}}
        return event("sentry", {"action": action, "data": {"metric_alert": alert}})

    assert said("warning").episode_key == said("critical").episode_key == said("resolved").episode_key
    assert [said(x).kind for x in ("warning", "critical", "resolved")] == ["unknown", "firing", "resolved"]


@pytest.mark.parametrize(
    ("settings", "facts", "started"),
    [
        ({}, {"date": "2021.08.27", "time": "12:51:50"}, None),
        ({"time_zone": "Europe/Vienna"}, {"date": "2021.08.27", "time": "12:51:50"}, utc(2021, 8, 27, 10, 51, 50)),
        ({"time_zone": "Europe/Vienna"}, {"date": "2021.08.27", "time": "{EVENT.TIME}"}, utc(2021, 8, 26, 22)),
        ({"time_zone": "UTC"}, {"date": "0001.01.01", "time": "00:00:00"}, None),
        ({"time_zone": "UTC"}, {"date": "27.08.2021", "time": "12:51:50"}, None),
        ({}, {"timestamp": "1630061510"}, utc(2021, 8, 27, 10, 51, 50)),
        ({"time_zone": "UTC"}, {"timestamp": "{EVENT.TIMESTAMP}", "date": "2021.08.27", "time": "10:51:50"},
         utc(2021, 8, 27, 10, 51, 50)),
    ],
)  # fmt: skip
def test_zabbix_times_need_a_zone(settings, facts, started):
    found = one("zabbix", {"value": "1", "event_id": "9", **facts}, **settings)
    assert (found.started_at, found.trigger) == (started, started is not None)


def test_what_is_no_time_zone():
    with pytest.raises(ValidationError, match="no time zone"):
        a("zabbix", time_zone="Europe/Atlantis")


def test_zabbix_tags_come_as_text_that_holds_json():
    found = one("zabbix", {"value": "1", "tags": '[{"tag": "system", "value": "shop"}, {"tag": "x"}, 3]'})
    assert found.labels["system"] == "shop"
    assert one("zabbix", {"value": "1", "tags": "{EVENT.TAGSJSON}"}).labels == {}


def test_azure_says_from_how_many_places_it_failed():
    criteria = {"allOf": [{"metricName": "Failed Location", "metricValue": 5, "threshold": "2"}]}
    body = {"schemaId": "azureMonitorCommonAlertSchema", "data": {
        "essentials": {"alertId": "/subscriptions/x/alerts/1", "monitorCondition": "Fired"},
        "alertContext": {"conditionType": "WebtestLocationAvailabilityCriteria", "condition": criteria}}}  # fmt: skip
    assert one("azure", body).evidence.vantages_failed == 5
    criteria["allOf"][0]["metricValue"] = None
    assert one("azure", body).evidence.vantages_failed is None


def test_better_stacks_regions_are_vantages_and_a_reopened_incident_keeps_its_key():
    body = payload("betterstack/acknowledged_before_started")
    found = one("betterstack", body)
    assert (found.evidence.vantages_failed, found.observed_at) == (3, found.started_at)
    body["event"] = "reopened"
    assert one("betterstack", body).started_at == found.started_at


# ---- CloudEvents ----

OURS = {"status": "firing", "fingerprint": "db", "started_at": NOW.isoformat(), "labels": {"system": "shop"}}
CE = {"specversion": "1.0", "id": "1", "source": "/probe", "type": "com.example.down", "time": NOW.isoformat()}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}


def test_the_three_modes_of_a_cloud_event_say_the_same():
    structured = one("cloudevents", {**CE, "data": OURS}, STRUCTURED)
    binary = one("cloudevents", OURS, {f"ce-{k}": v.replace(":", "%3A") for k, v in CE.items()})
    encoded = one(
        "cloudevents", {**CE, "data_base64": base64.b64encode(json.dumps(OURS).encode()).decode()}, STRUCTURED
    )
    assert structured == binary == encoded
    assert (structured.kind, structured.fingerprint) == ("firing", "db")
    assert structured.labels == {"system": "shop", "origin": "/probe", "type": "com.example.down"}
    batch = read("cloudevents", [{**CE, "data": OURS}, {**CE, "id": "2", "data": OURS}],
                 {"content-type": "application/cloudevents-batch+json"})  # fmt: skip
    assert batch == (structured, structured)


def test_the_type_of_an_event_may_say_what_it_means():
    settings = {"firing": ("com.example.down",), "resolved": ("com.example.up",)}

    def said(what, status="firing"):
        event = {**CE, "type": what, "subject": "db", "data": {"status": status}}
        return one("cloudevents", event, STRUCTURED, **settings)

    assert (said("com.example.down", "resolved").kind, said("com.example.down").fingerprint) == ("firing", "/probe db")
    assert (said("com.example.up").kind, said("com.example.up").closes) == ("resolved", "fingerprint")
    assert said("com.example.other").kind == "unknown"


def test_labels_of_the_data_do_not_pass_for_attributes_of_the_event():
    found = one("cloudevents", {**CE, "data": {"status": "firing", "labels": {"origin": "/forged"}}}, STRUCTURED)
    assert found.labels["origin"] == "/probe"


def test_an_event_of_another_version_is_malformed():
    for change in ({"specversion": "0.1"}, {"id": ""}, {"type": None}, {"data_base64": "?"}):
        with pytest.raises(Malformed):
            read("cloudevents", {**CE, **change}, STRUCTURED)


# ---- ids of deliveries ----


@pytest.mark.parametrize(
    ("name", "body", "headers", "expected"),
    [
        ("sns", {"MessageId": "m-1"}, {}, "m-1"),
        ("sns", {"Records": [{"Sns": {"MessageId": "m-2"}}]}, {}, "m-2"),
        ("sns", {"AlarmName": "x"}, {"x-amz-sns-rawdelivery": "true", "x-amz-sns-message-id": "m-3"}, "m-3"),
        ("eventbridge", {"id": "e-1"}, {}, "e-1"),
        ("pagerduty", {"event": {"id": "p-1"}}, {"x-webhook-id": "forged"}, "p-1"),
        ("pagerduty", {"event": {}}, {"x-webhook-id": "w-1"}, "w-1"),
        ("gcp", {"message": {"messageId": "g-1"}}, {}, "g-1"),
        ("cloudevents", {**CE, "data": {}}, STRUCTURED, "/probe 1"),
        ("standardwebhooks", {}, {"webhook-id": "s-1"}, "s-1"),
        ("sentry", {}, {"request-id": "anything"}, ""),  # not signed: the hash of the body is
    ],
)
def test_a_delivery_sent_again_has_the_same_id(name, body, headers, expected):
    assert a(name).transport_id(delivery(headers=headers), body) == expected


# ---- values ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1502709956, utc(2017, 8, 14, 11, 25, 56)),
        (1502709956288, utc(2017, 8, 14, 11, 25, 56, 288000)),
        ("1502709956288", utc(2017, 8, 14, 11, 25, 56, 288000)),
        (1502709956288000, utc(2017, 8, 14, 11, 25, 56, 288000)),
        (1502709956288000110, utc(2017, 8, 14, 11, 25, 56, 288000)),
        ("2017-08-14T11:25:56Z", utc(2017, 8, 14, 11, 25, 56)),
        ("0001-01-01T00:00:00+02:00", None),
        (0, None),
        (-1502709956288, None),
        (10**39, None),
        (True, None),
        (None, None),
        ([], None),
        ("*alertDateTime*", None),
    ],
)
def test_the_unit_of_a_number_is_told_by_its_size(value, expected):
    found = epoch(value)
    assert found == expected or abs(found - expected) < timedelta(milliseconds=1)


def test_half_a_character_can_be_written_down():
    assert text("a\ud800b").encode() == b"a?b"
