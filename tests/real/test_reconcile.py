"""What a sender lost is found by asking it: a real Alertmanager, and CloudWatch as moto plays it over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lease_backends import need
from patience import until
from receiving import free_port

from flows.intake import reconcile
from flows.intake.episodes import Episodes
from flows.intake.event import Auth, Delivery, normalise
from flows.intake.history import History
from flows.intake.inbox import Inbox
from flows.intake.reconcile import Reconciler
from flows.intake.source import known

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
STARTED = "2026-11-24T12:00:00.123456789Z"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need("prometheus-alertmanager")
    folder, port = tmp_path_factory.mktemp("alertmanager"), free_port()
    (folder / "am.yaml").write_text(json.dumps({"route": {"receiver": "none"}, "receivers": [{"name": "none"}]}))
    words = [
        "prometheus-alertmanager", f"--config.file={folder}/am.yaml", f"--storage.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/-/ready", timeout=30).is_success
        except httpx.HTTPError:
            return False

    try:
        until(ready, 30)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def reconciler(api: str, tmp_path: Path) -> Iterator[Reconciler]:
    cls = known()["alertmanager"]
    source = cls(cls.Settings(source="alertmanager", unauthenticated=True, api=api, watchdog="watchdog"))
    inbox = Inbox(tmp_path / "inbox.sqlite3")
    yield Reconciler({"am": source}, inbox, Episodes(History(inbox.file)))
    inbox.close()


def fires(api: str, name: str, *, ended: bool = False) -> str:
    """Tell Alertmanager, as Prometheus does; its fingerprint of the alert."""
    now = datetime.now(UTC)
    ends = now - timedelta(seconds=1) if ended else now + timedelta(hours=1)
    one = {"labels": {"alertname": name}, "startsAt": STARTED, "endsAt": ends.isoformat()}
    httpx.post(f"{api}/api/v2/alerts", json=[one], timeout=30).raise_for_status()
    if ended:
        return ""
    found = until(
        lambda: [a for a in httpx.get(f"{api}/api/v2/alerts", timeout=30).json() if a["labels"]["alertname"] == name]
    )
    return str(found[0]["fingerprint"])


def webhook(one: Reconciler, name: str, fingerprint: str) -> bool:
    """The delivery that Alertmanager's webhook makes of it, with nanoseconds; True if it was anything new."""
    body = {"version": "4", "alerts": [
        {"status": "firing", "labels": {"alertname": name}, "startsAt": STARTED, "fingerprint": fingerprint}
    ]}  # fmt: skip
    delivery = Delivery("am", json.dumps(body).encode(), datetime.now(UTC))
    source = one.endpoints["am"]
    events = tuple(normalise(a, delivery, Auth(method="t", verified=True), "x") for a in source.read(body, delivery))
    return bool(one.inbox.keep(delivery, f"webhook {name} {datetime.now(UTC)}", events).result().fresh)


def test_an_alert_that_was_lost_is_found_once_and_ends(api: str, reconciler: Reconciler) -> None:
    fingerprint = fires(api, "lost")
    assert asyncio.run(reconciler.ask("am")) == 1
    (entry,) = [e for e in reconciler.episodes.history.entries() if e.event.labels["alertname"] == "lost"]
    assert (entry.event.kind, entry.event.auth.method, entry.event.auth.verified) == ("firing", "poll", True)
    assert asyncio.run(reconciler.ask("am")) == 0, "it is known now"
    assert not webhook(reconciler, "lost", fingerprint), "the webhook that comes late is the same episode"
    fires(api, "lost", ended=True)
    until(
        lambda: (
            not [a for a in httpx.get(f"{api}/api/v2/alerts", timeout=30).json() if a["labels"]["alertname"] == "lost"]
        )
    )
    assert asyncio.run(reconciler.ask("am")) == 0, "away once may be a restart of the monitor"
    assert reconciler.episodes.history.firing(entry.event.episode_key)
    assert asyncio.run(reconciler.ask("am")) == 1
    assert not reconciler.episodes.history.firing(entry.event.episode_key)


def test_an_alert_that_was_delivered_is_not_news(api: str, reconciler: Reconciler) -> None:
    assert webhook(reconciler, "told", fires(api, "told"))
    asyncio.run(reconciler.ask("am"))
    assert len([e for e in reconciler.episodes.history.entries() if e.event.labels["alertname"] == "told"]) == 1


def test_what_was_left_out_in_part_is_asked_for(api: str, reconciler: Reconciler) -> None:
    fingerprint = fires(api, "cut")
    body = {"version": "4", "truncatedAlerts": 3, "alerts": [
        {"status": "firing", "labels": {"alertname": "cut"}, "startsAt": STARTED, "fingerprint": fingerprint}
    ]}  # fmt: skip
    delivery = Delivery("am", json.dumps(body).encode(), datetime.now(UTC))
    events = [normalise(a, delivery, reconcile.AUTH, "x") for a in reconciler.endpoints["am"].read(body, delivery)]
    reconciler.inbox.keep(delivery, "cut", tuple(events)).result()
    asyncio.run(reconciler.ask("am"))
    found = [e.event.truncated for e in reconciler.episodes.history.of_episode(events[0].episode_key)]
    assert found == [True, False]


def test_the_watchdog_is_not_asked_for(api: str, reconciler: Reconciler) -> None:
    fires(api, "watchdog")
    asyncio.run(reconciler.ask("am"))
    assert reconciler.episodes.history.last_seen("am", "watchdog") is None, (
        "it says that deliveries arrive; these did not"
    )


def test_a_sender_that_does_not_answer_is_trouble_and_nothing_ends(api: str, reconciler: Reconciler) -> None:
    fires(api, "stays")
    asyncio.run(reconciler.ask("am"))
    source = reconciler.endpoints["am"]
    source.settings = source.settings.model_copy(update={"api": f"http://127.0.0.1:{free_port()}"})
    for _ in range(3):
        assert asyncio.run(reconciler.ask("am")) == 0
    assert "api/v2/alerts" in reconciler.trouble["am"]
    (entry,) = [e for e in reconciler.episodes.history.entries() if e.event.labels["alertname"] == "stays"]
    assert reconciler.episodes.history.firing(entry.event.episode_key)


@pytest.fixture
def moto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    program = Path(sys.executable).with_name("moto_server")
    env = {**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    with (tmp_path / "moto.log").open("wb") as log:
        process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log, env=env)
    url = f"http://127.0.0.1:{port}"
    for name, value in {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, value)

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/moto-api/", timeout=30).status_code < 500
        except httpx.HTTPError:
            return False

    try:
        until(ready, 60)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_alarms_that_would_have_told_a_topic_of_ours(moto: str) -> None:
    topic = "arn:aws:sns:eu-west-1:123456789012:relight"
    client = boto3.client("cloudwatch", region_name="eu-west-1", endpoint_url=moto)
    for name, action, state in (("down", topic, "ALARM"), ("well", topic, "OK"), ("else", topic + "-2", "ALARM")):
        client.put_metric_alarm(
            AlarmName=name, MetricName="up", Namespace="app", Period=60, EvaluationPeriods=1, Threshold=1,
            ComparisonOperator="LessThanThreshold", Statistic="Minimum", AlarmActions=[action],
        )  # fmt: skip
        client.set_alarm_state(AlarmName=name, StateValue=state, StateReason="a test")
    cls = known()["sns"]
    source = cls(cls.Settings(source="sns", topics=(topic,)))
    assert reconcile.polled(source)
    (body,) = asyncio.run(reconcile.cloudwatch(source))
    message = json.loads(body["Message"])
    assert (body["Type"], body["TopicArn"]) == ("Notification", topic)
    assert (message["AlarmName"], message["NewStateValue"], message["Region"]) == ("down", "ALARM", "eu-west-1")
    assert message["AlarmArn"].endswith(":alarm:down")
    (alert,) = source.read(body, Delivery("aws", json.dumps(body).encode(), datetime.now(UTC)))
    assert (alert.kind, alert.labels["alertname"], alert.trigger) == ("firing", "down", True)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(message["StateChangeTime"])).total_seconds()) < 120
