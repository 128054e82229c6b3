"""Who sent this? Wrong signatures, tokens, topics, certificates and times are turned away, by every source."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from flows.intake.event import Delivery, Denied, Malformed, Unavailable
from flows.intake.source import known, of
from flows.intake.sources import sns
from tasks.errors import MissingSecret

PAYLOADS = Path(__file__).with_name("payloads")
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
TOPIC = "arn:aws:sns:eu-west-1:123456789012:alarms"
CERTIFICATE = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem"


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("OLD", "old-secret")
    monkeypatch.setenv("NEW", "new-secret")
    monkeypatch.setenv("TOKEN", "a-token")
    monkeypatch.setenv("WHSEC", "whsec_" + base64.b64encode(b"k" * 32).decode())


def a(name, **settings):
    if name == "sns":
        settings.setdefault("topics", (TOPIC,))
    return of(name)(of(name).Settings(source=name, **settings))


def ask(source, body=b"{}", headers=None, at=NOW, **more):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(source.authenticate(Delivery("here", raw, at, headers=headers or {}, **more)))


def denied(status, *args, **kwargs):
    with pytest.raises(Denied) as e:
        ask(*args, **kwargs)
    assert e.value.status == status
    return str(e.value)


def mac(secret, message):
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()


class Answers:
    """The internet: URL -> document. ``asked``: what was read of it."""

    def __init__(self, **documents):
        self.documents, self.asked = documents, []

    async def get(self, url):
        self.asked.append(url)
        if url not in self.documents:
            raise Unavailable(f"{url} cannot be read")
        return self.documents[url]

    async def kept(self, url, fresh_s=3600.0):
        return await self.get(url)


# ---- tokens ----


@pytest.mark.parametrize("name", sorted(set(known()) - {"sns", "standardwebhooks"}))
def test_every_source_that_takes_a_token_turns_away_another(name):
    source = a(name, tokens=("env:TOKEN",))
    assert ask(source, token="a-token").verified
    assert ask(source, headers={"authorization": "Bearer a-token"}).method == "token"
    denied(403, source, token="another")
    denied(401, source)
    denied(401, a(name))


@pytest.mark.parametrize("name", ["grafana", "pagerduty", "sentry"])
def test_where_there_is_a_secret_a_token_alone_is_not_enough(name):
    denied(401, a(name, secrets=("env:NEW",), tokens=("env:TOKEN",)), token="a-token")


# ---- HMAC ----

SIGNED = {
    "grafana": ("x-grafana-alerting-signature", "{}"),
    "pagerduty": ("x-pagerduty-signature", "v1={}"),
    "sentry": ("sentry-hook-signature", "{}"),
}


@pytest.mark.parametrize(("name", "header", "form"), [(n, *x) for n, x in SIGNED.items()])
def test_a_body_signed_with_a_live_secret(name, header, form):
    source, body = a(name, secrets=("env:OLD", "env:NEW")), b'{"a": 1}'
    for secret, key in (("old-secret", "secret 1"), ("new-secret", "secret 2")):
        auth = ask(source, body, {header: form.format(mac(secret, body))})
        assert (auth.verified, auth.key_id, auth.replay_protected) == (True, key, False)
    denied(403, source, body, {header: form.format(mac("wrong", body))})
    denied(403, source, body + b" ", {header: form.format(mac("new-secret", body))})
    denied(401, source, body)
    denied(401, source, body, {header: " "})


def test_a_token_and_a_secret_must_both_be_shown():
    source, body = a("sentry", secrets=("env:NEW",), tokens=("env:TOKEN",)), b"{}"
    signature = {"sentry-hook-signature": mac("new-secret", body)}
    denied(401, source, body, signature)
    assert ask(source, body, signature, token="a-token").verified


def test_pagerdutys_published_vector(monkeypatch):
    monkeypatch.setenv("NEW", "lDQHScfUeXUKaQRNF+8XIiDKZ7XX3itBAYzwU0TARw8lJqRnkKl2iB1anSb0Z+IK")
    body = (PAYLOADS / "pagerduty" / "go_pagerduty_signed_raw.json").read_bytes()
    right = "v1=0c0b9495b893a39e70d1fea2fe11fbe0a825f88b9f67846f6cc07dd2bc5476cd"
    source = a("pagerduty", secrets=("env:OLD", "env:NEW"))
    assert ask(source, body, {"x-pagerduty-signature": right}).key_id == "secret 2"
    assert ask(source, body, {"x-pagerduty-signature": f"v1={'0' * 64}, {right}"}).verified
    denied(403, source, body, {"x-pagerduty-signature": f"v1={'0' * 64}"})
    denied(401, source, body, {"x-pagerduty-signature": right.replace("v1", "v2")})


def test_grafana_signs_the_time_with_the_body():
    source = a("grafana", secrets=("env:NEW",), timestamp_header="X-Time")

    def sent(at, body=b"{}", signed_at=None):
        signature = mac("new-secret", f"{signed_at or at}:".encode() + body)
        return {"x-grafana-alerting-signature": signature, "x-time": str(at)}

    now = int(NOW.timestamp())
    assert ask(source, headers=sent(now)).replay_protected
    assert ask(source, headers=sent(now - 290)).replay_protected
    assert "off" in denied(403, source, headers=sent(now - 310))
    denied(403, source, headers=sent(now + 310))
    denied(403, source, headers=sent(now, signed_at=now - 1))
    denied(403, source, headers={"x-grafana-alerting-signature": mac("new-secret", b"{}"), "x-time": str(now)})
    denied(401, source, headers=sent("soon"))


# ---- Standard Webhooks ----


def standard(identity="msg_1", at=None, body=b"{}", key=b"k" * 32):
    at = str(int(NOW.timestamp())) if at is None else at
    signature = base64.b64encode(hmac.new(key, f"{identity}.{at}.".encode() + body, hashlib.sha256).digest()).decode()
    return {"webhook-id": identity, "webhook-timestamp": at, "webhook-signature": f"v1,{signature}"}


def test_standard_webhooks():
    source = a("standardwebhooks", secrets=("env:WHSEC",))
    assert ask(source, headers=standard()).replay_protected
    several = {**standard(), "webhook-signature": f"v1a,x v1,AAAA {standard()['webhook-signature']}"}
    assert ask(source, headers=several).verified
    denied(403, source, headers=standard(key=b"x" * 32))
    denied(403, source, b'{"a": 1}', standard())
    denied(403, source, headers={**standard(), "webhook-id": "msg_2"})
    denied(403, source, headers=standard(at=str(int((NOW - timedelta(minutes=5, seconds=1)).timestamp()))))
    denied(403, source, headers=standard(at=str(int((NOW + timedelta(minutes=5, seconds=1)).timestamp()))))
    denied(401, source, headers=standard(at="soon"))
    denied(401, source)
    denied(401, a("standardwebhooks", tokens=("env:TOKEN",)), token="a-token")


def test_the_vector_of_the_standard(monkeypatch):
    """github.com/standard-webhooks/standard-webhooks, libraries/python/tests."""
    monkeypatch.setenv("WHSEC", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    source = a("standardwebhooks", secrets=("env:WHSEC",))
    assert ask(source, b'{"test": 2432232314}', headers, datetime.fromtimestamp(1614265330, UTC)).verified


def test_a_secret_that_is_none_is_said(monkeypatch):
    monkeypatch.setenv("WHSEC", "whsec_?")
    with pytest.raises(MissingSecret, match="whsec_"):
        ask(a("standardwebhooks", secrets=("env:WHSEC",)), headers=standard())


# ---- SNS ----


@pytest.fixture(scope="module")
def keys():
    return rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)


def certificate(key, begins=NOW - timedelta(days=1), ends=NOW + timedelta(days=1)):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, ends)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def message(key, version="2", kind="Notification", **more):
    found = {"Type": kind, "MessageId": "m-1", "TopicArn": TOPIC, "Message": "Hello", "SigningCertURL": CERTIFICATE,
             "Timestamp": NOW.isoformat().replace("+00:00", "Z"), "SignatureVersion": version, **more}  # fmt: skip
    if kind != "Notification":
        confirm = f"https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=t"
        found = {"Token": "t", "SubscribeURL": confirm, **found}
    algorithm = {"1": SHA1, "2": SHA256}.get(version, SHA256)()
    signature = key.sign(sns.canonical(found), PKCS1v15(), algorithm)
    return {**found, "Signature": base64.b64encode(signature).decode()}


@pytest.fixture
def topic(keys):
    """The source, with SNS's certificate in reach."""
    source = a("sns")
    source.outside = Answers(**{CERTIFICATE: certificate(keys[0])})
    return source


def test_a_real_signature():
    sent = (PAYLOADS / "cloudwatch_sns" / "signed_real_v1_http_0.json").read_bytes()
    body = json.loads(sent)
    at = datetime(2022, 7, 28, 21, 24, 0, tzinfo=UTC)
    source = a("sns", topics=(body["TopicArn"],))
    pem = (PAYLOADS / "cloudwatch_sns" / "sns_signing_cert_2022.pem").read_bytes()
    source.outside = Answers(**{body["SigningCertURL"]: pem})
    auth = ask(source, sent, at=at)
    assert (auth.method, auth.verified, auth.replay_protected) == ("sns signature 1", True, True)
    denied(403, source, {**body, "Message": "Hello worle"}, at=at)
    assert "1 h" not in denied(403, source, sent, at=NOW)
    # the certificate has run out by then, whatever the message says
    expired = {**body, "Timestamp": NOW.isoformat()}
    assert "not valid now" in denied(403, source, expired, at=NOW)


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("more", [{}, {"Subject": "ALARM"}, {"Subject": None}, {"SigningCertUrl": CERTIFICATE}])
def test_both_versions_of_the_signature(keys, topic, version, more):
    sent = message(keys[0], version, **more)
    if "SigningCertUrl" in more:
        sent.pop("SigningCertURL")
    assert ask(topic, sent).method == f"sns signature {version}"
    denied(403, topic, {**sent, "Message": "Hello!"})
    denied(403, topic, {**sent, "Subject": "another"})
    denied(403, topic, message(keys[1], version, **more))


@pytest.mark.parametrize(
    ("change", "status", "why"),
    [
        ({"TopicArn": TOPIC + "2"}, 403, "none of this endpoint's `topics`"),
        ({"Timestamp": (NOW - timedelta(hours=1, seconds=1)).isoformat()}, 403, "off"),
        ({"Timestamp": (NOW + timedelta(minutes=6)).isoformat()}, 403, "off"),
        ({"Timestamp": "soon"}, 401, "no time"),
        ({"SignatureVersion": "3"}, 401, "no signature"),
        ({"Signature": ""}, 401, "no signature"),
        ({"SigningCertURL": None}, 401, "no signature"),
    ],
)
def test_what_costs_nothing_is_checked_before_anything_is_fetched(keys, topic, change, status, why):
    assert why in denied(status, topic, {**message(keys[0]), **change})
    assert topic.outside.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.eu-west-1.amazonaws.com/x.pem",
        "https://sns.eu-west-1.amazonaws.com.evil.example/x.pem",
        "https://evil.example/sns.eu-west-1.amazonaws.com/x.pem",
        "https://sns.eu-west-1.amazonaws.com@evil.example/x.pem",
        "https://user@sns.eu-west-1.amazonaws.com/x.pem",
        "https://sns.eu-west-1.amazonaws.com:8443/x.pem",
        "https://sns.eu-west-1.amazonaws.com/x.pem?a=b",
        "https://sns.eu-west-1.amazonaws.com/x.pem#y",
        "https://sns.eu-west-1.amazonaws.com/x.pem/y",
        "https://sns.eu-west-1.amazonaws.com/../x.pem",
        "https://sns.s3-us-west-2.amazonaws.com/x.pem",  # a bucket called sns
        "https://sns.amazonaws.com/x.pem",
        "https://sns.eu-west-1.amazonaws.com.cn/x.pem",  # another partition than the topic's
        "https://SNS.eu-west-1.amazonaws.com/x.pem",
        "https://sns.eu-west-1.amazonaws.com\n.evil.example/x.pem",
        "https://sns.eu-west-1.amazonaws.com/x.p\nem",
        " https://sns.eu-west-1.amazonaws.com/x.pem",
        "https://127.0.0.1/x.pem",
        "https://[::1",
        "file:///etc/x.pem",
    ],
)
def test_a_certificate_from_elsewhere_is_never_fetched(keys, topic, url):
    denied(403, topic, {**message(keys[0]), "SigningCertURL": url})
    assert topic.outside.asked == []


def test_a_certificate_that_cannot_be_had_asks_for_the_message_again(keys, topic):
    for documents in ({}, {CERTIFICATE: b"no certificate"}):
        topic.outside = Answers(**documents)
        with pytest.raises(Unavailable):
            ask(topic, message(keys[0]))


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"Type": ["x"]}', b'{"Type": "Notification"}', b"x"])
def test_what_is_no_message_of_sns(topic, body):
    with pytest.raises(Malformed):
        ask(topic, body)


def test_a_key_that_is_named_twice_is_refused(keys, topic):
    twice = json.dumps(message(keys[0]))[:-1] + ', "Message": "another"}'
    with pytest.raises(Malformed, match="twice"):
        ask(topic, twice.encode())


def test_raw_delivery_needs_another_authentication():
    headers = {"x-amz-sns-rawdelivery": "true", "x-amz-sns-topic-arn": TOPIC}
    assert "raw delivery" in denied(401, a("sns"), headers=headers)
    denied(401, a("sns", unauthenticated=True), headers=headers)
    source = a("sns", tokens=("env:TOKEN",))
    auth = ask(source, headers=headers, token="a-token")
    assert (auth.method, auth.replay_protected) == ("token", False)
    denied(403, source, headers=headers, token="another")
    denied(403, source, headers={**headers, "x-amz-sns-topic-arn": TOPIC + "2"}, token="a-token")


def test_a_topic_must_be_named():
    with pytest.raises(ValidationError):
        a("sns", topics=())


def shake(source, body, headers=None, **more):
    sent = Delivery("here", json.dumps(body).encode(), NOW, headers=headers or {}, **more)
    return asyncio.run(source.handshake(sent, body))


def test_a_topic_of_the_list_is_confirmed_after_its_signature(keys, topic):
    sent = message(keys[0], kind="SubscriptionConfirmation")
    assert ask(topic, sent).verified
    topic.outside.documents[sent["SubscribeURL"]] = b"<ConfirmSubscriptionResponse/>"
    assert shake(topic, sent).status == 200
    assert topic.outside.asked[-1] == sent["SubscribeURL"]
    topic.outside.documents.clear()
    with pytest.raises(Unavailable):
        shake(topic, sent)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/?Action=ConfirmSubscription&TopicArn=" + TOPIC,
        "https://sns.eu-west-1.amazonaws.com/?Action=Publish&TopicArn=" + TOPIC,
        "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn=another",
        "https://sns.eu-west-1.amazonaws.com/x?Action=ConfirmSubscription&TopicArn=" + TOPIC,
        "https://sns.eu-west-1.amazonaws.com/",
        "",
    ],
)
def test_no_other_address_is_asked_to_confirm(keys, topic, url):
    with pytest.raises(Denied):
        shake(topic, message(keys[0], kind="SubscriptionConfirmation", SubscribeURL=url))
    assert topic.outside.asked == []


def test_it_is_never_subscribed_again_by_itself(keys, topic, caplog):
    said = shake(topic, message(keys[0], kind="UnsubscribeConfirmation"))
    assert (said.status, topic.outside.asked) == (200, [])
    assert "does not deliver here any more" in caplog.text
    quiet = a("sns", confirm=False)
    quiet.outside = Answers()
    assert "not confirmed" in shake(quiet, message(keys[0], kind="SubscriptionConfirmation")).said
    assert quiet.outside.asked == []


def test_a_notification_is_no_handshake(keys, topic):
    assert shake(topic, message(keys[0])) is None
    assert shake(topic, {"AlarmName": "x"}, {"x-amz-sns-rawdelivery": "true"}) is None


# ---- tokens of an identity provider ----


def jwk(key, kid="k1", **more):
    numbers = key.public_key().public_numbers()

    def b64(n):
        return base64.urlsafe_b64encode(n.to_bytes((n.bit_length() + 7) // 8)).rstrip(b"=").decode()

    return {"kty": "RSA", "use": "sig", "kid": kid, "n": b64(numbers.n), "e": b64(numbers.e), **more}


def jwt(key, claims, **header):
    def b64(found):
        return base64.urlsafe_b64encode(found).rstrip(b"=").decode()

    head = b64(json.dumps({"alg": "RS256", "kid": "k1", **header}).encode())
    signed = f"{head}.{b64(json.dumps(claims).encode())}"
    return f"{signed}.{b64(key.sign(signed.encode(), PKCS1v15(), SHA256()))}"


AT = NOW.timestamp()
GOOGLE = {"iss": "https://accounts.google.com", "aud": "https://relight.example.com", "exp": AT + 600, "iat": AT,
          "email": "push@p.iam.gserviceaccount.com", "email_verified": True}  # fmt: skip
ENTRA = {"iss": "https://sts.windows.net/tenant-1/", "aud": "api://relight", "exp": AT + 600, "nbf": AT - 10,
         "appid": "461e8683-5575-4561-ac7f-899cc907d62a"}  # fmt: skip
PROVIDERS = {
    "gcp": ({"audience": GOOGLE["aud"], "service_account": GOOGLE["email"]}, GOOGLE,
            "https://www.googleapis.com/oauth2/v3/certs"),
    "azure": ({"tenant": "tenant-1", "audience": "api://relight"}, ENTRA,
              "https://login.microsoftonline.com/tenant-1/discovery/v2.0/keys"),
}  # fmt: skip


@pytest.fixture(params=sorted(PROVIDERS))
def provider(request, keys):
    """(source, its claims, a function that signs claims and asks)."""
    settings, claims, url = PROVIDERS[request.param]
    source = a(request.param, tokens=("env:TOKEN",), **settings)
    source.outside = Answers(**{url: json.dumps({"keys": [jwk(keys[1], "k0"), jwk(keys[0])]}).encode()})

    def bearer(found, key=keys[0], **header):
        return {"authorization": f"Bearer {jwt(key, found, **header)}"}

    return source, claims, bearer


def test_a_token_of_the_provider(provider):
    source, claims, bearer = provider
    auth = ask(source, headers=bearer(claims))
    assert (auth.verified, auth.replay_protected) == (True, False)
    assert ask(source, headers=bearer({**claims, "aud": ["other", claims["aud"]]})).verified


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"aud": None},
        {"exp": AT - 61},
        {"exp": None},
        {"exp": "never"},
        {"exp": True},
        {"nbf": AT + 61},
    ],
)
def test_a_token_for_others_or_another_time(provider, change):
    source, claims, bearer = provider
    denied(403, source, headers=bearer({**claims, **change}))


def test_a_token_that_is_not_signed_as_it_must_be(provider, keys):
    source, claims, bearer = provider
    denied(403, source, headers=bearer(claims, key=keys[1]))
    denied(403, source, headers=bearer(claims, kid="k9"))
    denied(403, source, headers=bearer(claims, kid=""))
    for algorithm in ("none", "HS256", "RS512", "rs256"):
        denied(403, source, headers=bearer(claims, alg=algorithm))
    denied(403, source, headers=bearer(claims, crit=["exp"]))
    right = bearer(claims)["authorization"]
    for wrong in (right + "A", right.rpartition(".")[0], right.rpartition(".")[0] + ".", "Bearer a.b.c", "Bearer ..",
                  "Bearer " + "x" * 9000, right.replace(".", ".é", 1)):  # fmt: skip
        denied(403, source, headers={"authorization": wrong})
    # a token of ours is no way round it
    denied(401, source, token="a-token")
    denied(401, source, headers={"x-relight-token": "a-token"})


def test_a_provider_whose_keys_cannot_be_read_asks_for_it_again(provider):
    source, claims, bearer = provider
    (url,) = source.outside.documents
    for documents in ({}, {url: b"<html>"}, {url: b'{"keys": [{"kty": "RSA", "kid": "k1", "n": "", "e": ""}]}'}):
        source.outside = Answers(**documents)
        with pytest.raises(Unavailable):
            ask(source, headers=bearer(claims))


def test_a_key_that_is_too_short_or_for_something_else_signs_nothing(provider):
    source, claims, bearer = provider
    (url,) = source.outside.documents
    short = rsa.generate_private_key(65537, 1024)  # noqa: S505 - refused
    for key in (jwk(short), {**jwk(short), "use": "enc"}):
        source.outside = Answers(**{url: json.dumps({"keys": [key]}).encode()})
        denied(403, source, headers=bearer(claims, key=short))


def test_google_must_vouch_for_the_one_service_account(provider):
    source, claims, bearer = provider
    changes = [{"email": "evil@p.iam.gserviceaccount.com"}, {"email_verified": False}, {"email_verified": "true"}]
    if source.name == "azure":
        changes = [{"appid": "another"}, {"appid": None}]
    for change in changes:
        denied(403, source, headers=bearer({**claims, **change}))


def test_entras_second_version_of_a_token(provider):
    source, claims, bearer = provider
    if source.name == "azure":
        second = {**claims, "iss": "https://login.microsoftonline.com/tenant-1/v2.0", "azp": claims["appid"]}
        second.pop("appid")
        assert ask(source, headers=bearer(second)).verified


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gcp", {"audience": "x"}),
        ("azure", {"tenant": "x"}),
        ("azure", {"audience": "x"}),
        ("azure", {"tenant": "x/../y", "audience": "z"}),
    ],
)
def test_half_a_provider_is_a_mistake(name, settings):
    with pytest.raises(ValidationError):
        a(name, **settings)


# ---- CloudEvents' handshake ----


def test_a_sender_of_cloud_events_may_ask_first():
    source = a("cloudevents", tokens=("env:TOKEN",))
    asked = {"webhook-request-origin": "events.example.com", "webhook-request-callback": "http://169.254.169.254/"}
    said = shake(source, None, {**asked, "webhook-request-rate": "120"}, method="OPTIONS")
    assert said.status == 200
    assert dict(said.headers) == {
        "WebHook-Allowed-Origin": "events.example.com",
        "WebHook-Allowed-Rate": "*",
        "Allow": "POST, OPTIONS",
    }
    assert shake(source, None, asked, method="POST") is None
    with pytest.raises(Denied):
        shake(source, None, method="OPTIONS")
    with pytest.raises(Denied):
        shake(a("cloudevents", origins=("other.example.com",)), None, asked, method="OPTIONS")
