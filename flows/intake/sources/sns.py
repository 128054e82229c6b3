"""CloudWatch through SNS over HTTPS ("Verifying the signatures of Amazon SNS messages", SNS developer guide).

A valid signature proves only that *some* AWS account's topic sent it: anybody can have AWS sign. The allow-list of
topics is what makes it ours. What costs nothing is checked first; only then is a certificate fetched.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from typing import Any, ClassVar
from urllib.parse import SplitResult, parse_qs, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, HashAlgorithm
from pydantic import Field

from flows.intake import cloudwatch
from flows.intake.body import strict_json
from flows.intake.event import Alert, Auth, Delivery, Denied, Malformed, Unavailable, moment, part, text, texts
from flows.intake.fetch import Outside
from flows.intake.signatures import timely
from flows.intake.source import Handshake, Source, SourceSettings, by_token
from flows.intake.sources import eventbridge

SIGNED = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    "UnsubscribeConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
"""The keys whose values are signed, in this order."""
HASHES: dict[str, type[HashAlgorithm]] = {"1": SHA1, "2": SHA256}
SIGNED_FOR_S = 3600.0
"""A delivery policy may retry for so long; what is signed earlier is a copy."""
_HOST = re.compile(r"sns\.[a-z]{2,}(?:-[a-z]+)+-[0-9]+\.amazonaws\.com(\.cn)?")
"""A region's name, strictly: ``sns.s3-us-west-2.amazonaws.com`` would be somebody's bucket called sns."""
_FILE = re.compile(r"/[A-Za-z0-9._-]+\.pem")
log = logging.getLogger("relight.intake")


class SnsSettings(SourceSettings):
    """As ``SourceSettings``; tokens are needed only for raw delivery, which has no signature.

    Attributes:
        topics: ARNs of the topics that may deliver here.
        confirm: answer a topic of the list that asks whether this endpoint wants its messages.
    """

    topics: tuple[str, ...] = Field(min_length=1)
    confirm: bool = True


class Sns(Source):
    """Alarm actions that notify a topic with an HTTPS subscription."""

    name: ClassVar[str] = "sns"
    Settings: ClassVar[type[SourceSettings]] = SnsSettings
    most_bytes: ClassVar[int] = 1 << 18

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.outside = Outside()

    async def authenticate(self, delivery: Delivery) -> Auth:
        if _raw(delivery):
            return self._by_token(delivery)
        message = _envelope(strict_json(delivery.body))
        kind = text(message.get("Type"))
        if kind not in SIGNED:
            raise Malformed(f"Type {kind!r} is none of SNS: {', '.join(SIGNED)}")
        missing = [k for k in SIGNED[kind] if k != "Subject" and not isinstance(message.get(k), str)]
        if missing:
            raise Malformed(f"no {', '.join(missing)}")
        self._topic(message["TopicArn"])
        timely(moment(message["Timestamp"]), delivery, SIGNED_FOR_S, "Timestamp")
        version = text(message.get("SignatureVersion"))
        certificate = message.get("SigningCertURL") or message.get("SigningCertUrl")  # Lambda spells it so
        if version not in HASHES or not message.get("Signature") or not isinstance(certificate, str):
            raise Denied("no signature of version 1 or 2; for raw delivery give the endpoint `tokens`")
        key = await self._public_key(certificate, message["TopicArn"], delivery)
        try:
            signature = base64.b64decode(str(message["Signature"]), validate=True)
            key.verify(signature, canonical(message), PKCS1v15(), HASHES[version]())
        except UnsupportedAlgorithm:
            raise Denied("this machine takes no SHA-1; set SignatureVersion 2 on the topic", status=403) from None
        except (binascii.Error, ValueError, InvalidSignature):
            raise Denied("the signature is not that of this message by SNS", status=403) from None
        return Auth(method=f"sns signature {version}", key_id=certificate, verified=True, replay_protected=True)

    def _by_token(self, delivery: Delivery) -> Auth:
        """Raw delivery is not signed at all: anybody can write those headers."""
        if not self.settings.tokens:
            raise Denied("raw delivery has no signature: switch it off, or give this endpoint `tokens`")
        found = by_token(delivery, self.settings)
        self._topic(delivery.header("x-amz-sns-topic-arn"))
        return found

    def _topic(self, arn: str) -> None:
        if arn not in self.settings.topics:
            raise Denied("its topic is none of this endpoint's `topics`", status=403)

    async def _public_key(self, url: str, topic: str, delivery: Delivery) -> RSAPublicKey:
        where = _trusted(url, topic)
        if not _FILE.fullmatch(where.path) or where.query:
            raise Denied("the certificate is at no address of SNS", status=403)
        raw = await self.outside.kept(url)
        try:
            certificate = x509.load_pem_x509_certificate(raw)
            key = certificate.public_key()
        except (ValueError, UnsupportedAlgorithm) as e:
            raise Unavailable(f"{url} is no certificate: {e}", retry_s=60) from e
        valid = certificate.not_valid_before_utc <= delivery.received_at <= certificate.not_valid_after_utc
        if not valid or not isinstance(key, RSAPublicKey):
            raise Denied(f"the certificate {url} is not valid now, or not of RSA", status=403)
        return key

    async def handshake(self, delivery: Delivery, body: Any) -> Handshake | None:
        message = {} if _raw(delivery) else _envelope(body)
        kind, topic = message.get("Type"), text(message.get("TopicArn"))
        if kind == "UnsubscribeConfirmation":
            # to subscribe again by itself would undo what an operator did, or help whoever took the topic over
            log.warning(
                "endpoint %s: %s does not deliver here any more; subscribe again if it should", delivery.endpoint, topic
            )
            return Handshake(200, f"noted that {topic} is unsubscribed; it is not subscribed again by itself")
        if kind != "SubscriptionConfirmation":
            return None
        if not self.settings.confirm:
            return Handshake(200, "not confirmed: this endpoint has `confirm: false`")
        url = text(message.get("SubscribeURL"))
        where = _trusted(url, topic)
        asked = parse_qs(where.query)
        if (
            where.path not in ("", "/")
            or asked.get("Action") != ["ConfirmSubscription"]
            or asked.get("TopicArn") != [topic]
        ):
            raise Denied("SubscribeURL does not confirm a subscription to its own topic", status=403)
        await self.outside.get(url)
        log.info("endpoint %s: %s delivers here now", delivery.endpoint, topic)
        return Handshake(200, f"subscribed to {topic}")

    def transport_id(self, delivery: Delivery, body: Any) -> str:
        if _raw(delivery):
            return delivery.header("x-amz-sns-message-id")
        return text(_envelope(body).get("MessageId"))

    def read(self, body: Any, delivery: Delivery) -> tuple[Alert, ...]:
        message = _envelope(body)
        if "Type" not in message:
            return (_alarm(message, {}),)
        if message["Type"] != "Notification" or not isinstance(message.get("Message"), str):
            raise Malformed("no notification with a Message")
        try:
            found = strict_json(message["Message"].encode("utf-8", "replace"))
        except Malformed:
            found = None  # words to people: verified, and of no interest
        return (_alarm(part(found), message),)


def canonical(message: dict[str, Any]) -> bytes:
    """What SNS signs."""
    keys = SIGNED[message["Type"]]
    return "".join(f"{k}\n{message[k]}\n" for k in keys if message.get(k) is not None).encode("utf-8", "replace")


def _alarm(found: dict[str, Any], message: dict[str, Any]) -> Alert:
    if "NewStateValue" in found:
        return cloudwatch.by_sns(found)
    if "detail-type" in found or "alarmData" in found:  # an EventBridge rule may have the topic as its target
        return eventbridge.alert(found)
    if not message:
        raise Malformed("neither a message of SNS nor a CloudWatch alarm")
    labels = texts({"topic": message.get("TopicArn")})
    words = text(message.get("Subject")) or text(message.get("Message"))[:200]
    return Alert(kind="unknown", title=words, labels=labels, started_at=moment(message.get("Timestamp")))


def _envelope(body: Any) -> dict[str, Any]:
    """The message itself; a Lambda function that passes its event on wraps it."""
    if not isinstance(body, dict):
        raise Malformed("the body is no object")
    records = body.get("Records")
    if isinstance(records, list):
        if len(records) != 1 or not isinstance(part(records[0]).get("Sns"), dict):
            raise Malformed("expected exactly one record with `Sns`")
        return part(records[0]["Sns"])
    return body


def _raw(delivery: Delivery) -> bool:
    return delivery.header("x-amz-sns-rawdelivery").lower() == "true"


def _trusted(url: str, topic: str) -> SplitResult:
    """The parts of an address of SNS in the topic's partition. Raises Denied."""
    try:
        where = urlsplit(url)
        # urlsplit drops blanks and control characters that whoever connects might not
        plain = (
            where.scheme == "https" and not where.fragment and url.isascii() and url.isprintable() and " " not in url
        )
    except ValueError:
        raise Denied("an address in the message is none", status=403) from None
    host = _HOST.fullmatch(where.netloc)
    if not plain or not host or bool(host[1]) != topic.startswith("arn:aws-cn:"):
        raise Denied("an address in the message is not one of SNS", status=403)
    return where


SOURCE = Sns
