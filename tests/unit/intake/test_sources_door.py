"""Sources at the receiver's door: their ids, handshakes, tests and shortages as the sender sees them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time

import httpx
import pytest

from flows.engine import places
from flows.intake.event import Unavailable
from flows.intake.history import History
from flows.intake.inbox import Inbox
from flows.intake.receiver import Receiver, application
from flows.intake.source import of

KEY = b"k" * 32
TOPIC = "arn:aws:sns:eu-west-1:123456789012:alarms"


class Gone:
    """An internet that is not there."""

    async def kept(self, url, fresh_s=3600.0):
        raise Unavailable(f"{url} cannot be read", retry_s=30)

    get = kept


@pytest.fixture
def ask(monkeypatch):
    """Asks the application; ``ask.inbox`` is what it keeps."""
    monkeypatch.setenv("WHSEC", "whsec_" + base64.b64encode(KEY).decode())
    monkeypatch.setenv("TOKEN", "a-token")
    given = {
        "standardwebhooks": {"secrets": ("env:WHSEC",)},
        "cloudevents": {"tokens": ("env:TOKEN",)},
        "datadog": {"tokens": ("env:TOKEN",)},
        "sns": {"topics": (TOPIC,)},
    }
    endpoints = {n: of(n)(of(n).Settings(source=n, **more)) for n, more in given.items()}
    endpoints["sns"].outside = Gone()
    inbox = Inbox(places.state_home() / "inbox.sqlite3")

    async def preview(event):
        return {"outcome": "start", "alert": event.subject()}

    app = application(Receiver(endpoints, inbox, preview=preview), dict)

    def send(path, body=None, method="POST", **headers):
        async def request():
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://relight") as client:
                raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
                return await client.request(method, path, content=raw, headers=headers)

        return asyncio.run(request())

    send.inbox = inbox
    yield send
    inbox.close()


def signed(identity, body):
    at = str(int(time.time()))
    mac = base64.b64encode(hmac.new(KEY, f"{identity}.{at}.".encode() + body, hashlib.sha256).digest()).decode()
    return {"webhook-id": identity, "webhook-timestamp": at, "webhook-signature": f"v1,{mac}"}


def test_an_id_that_came_before_is_a_duplicate_whatever_it_carries(ask):
    data = {"status": "firing", "fingerprint": "db", "started_at": time.time()}
    first, other = (json.dumps({"data": {**data, "fingerprint": f}}).encode() for f in ("db", "other"))
    assert ask("/alerts/standardwebhooks", first, **signed("m1", first)).status_code == 202
    for body in (first, other):
        again = ask("/alerts/standardwebhooks", body, **signed("m1", body))
        assert (again.status_code, again.json()["taken"]) == (200, "duplicate")
    known = ask("/alerts/standardwebhooks", first, **signed("m2", first))
    assert (known.status_code, known.json()["taken"]) == (200, "known")


def test_a_sender_of_cloud_events_asks_and_is_answered(ask):
    asked = {"WebHook-Request-Origin": "events.example.com"}
    assert ask("/alerts/cloudevents", method="OPTIONS", **asked).status_code == 401
    said = ask("/alerts/cloudevents/a-token", method="OPTIONS", **asked)
    assert (said.status_code, said.headers["webhook-allowed-origin"]) == (200, "events.example.com")


def test_datadogs_button_is_answered_with_the_decision(ask):
    body = {"alert_transition": "Triggered", "title": "[TEST] Primary is gone", "date": str(int(time.time() * 1000))}
    said = ask("/alerts/datadog", body, **{"x-relight-token": "a-token"})
    assert (said.status_code, said.json()["taken"], said.json()["would"][0]["outcome"]) == (200, "test", "start")
    (entry,) = History(ask.inbox.file).entries()
    assert (entry.event.kind, entry.event.is_test) == ("test", True)


def test_any_url_can_ask_for_a_test(ask):
    body = {"alert_transition": "Triggered", "title": "Primary is gone", "date": str(int(time.time() * 1000))}
    said = ask("/alerts/datadog/a-token?test=1", body)
    assert (said.status_code, said.json()["taken"]) == (200, "test")


def test_a_certificate_that_cannot_be_had_is_503(ask):
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    body = {"Type": "Notification", "MessageId": "m", "TopicArn": TOPIC, "Message": "x", "Timestamp": at,
            "Signature": "eA==", "SignatureVersion": "2",
            "SigningCertURL": "https://sns.eu-west-1.amazonaws.com/x.pem"}  # fmt: skip
    said = ask("/alerts/sns", body)
    assert (said.status_code, said.headers["retry-after"]) == (503, "30")
    assert ask("/alerts/sns", {**body, "TopicArn": "another"}).status_code == 403
    assert History(ask.inbox.file).entries() == []
