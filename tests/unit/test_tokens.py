"""Signed approvals: what was signed is what is read, and nothing else counts."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from tasks import tokens
from tasks.errors import BadInput, Rejected

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = SecretStr("a secret of alice")


def wish(**more):
    said = {"run": "run-1", "step": "approve", "decision": "approve", "by": "alice", "expires": NOW, "why": "ok"}
    return tokens.Wish(**{**said, **more})


def test_what_was_signed_is_read_and_proven():
    token = tokens.mint(wish(), KEY)
    words = tokens.read(token)
    assert (words.run, words.step, words.decision, words.by, words.why) == (
        "run-1",
        "approve",
        "approve",
        "alice",
        "ok",
    )
    assert words.expires == int(NOW.timestamp())
    assert tokens.signed_by(token, KEY, "alice")
    assert tokens.signed_by(f" {token}\n", KEY, "alice")  # copied with what stood around it
    assert not tokens.signed_by(token, SecretStr("a secret of somebody"), "alice")


def test_two_tokens_are_never_the_same():
    assert tokens.mint(wish(), KEY) != tokens.mint(wish(), KEY)


@pytest.mark.parametrize("field", ["run", "step", "decision", "by", "expires", "nonce", "why"])
def test_every_field_is_covered(field):
    version, body, mac = tokens.mint(wish(), KEY).split(".")
    words = json.loads(base64.urlsafe_b64decode(body + "=="))
    words[field] = {"decision": "reject", "expires": words["expires"] + 3600}.get(field, "something-else")
    forged = base64.urlsafe_b64encode(json.dumps(words).encode()).decode().rstrip("=")
    token = f"{version}.{forged}.{mac}"
    assert str(getattr(tokens.read(token), field)) == str(words[field])
    assert not tokens.signed_by(token, KEY, "alice")


@pytest.mark.parametrize(
    "text",
    ["", "relight1", "relight1..", "relight2.e30.e30", "relight1.e30.e30", "relight1.%%.x", "relight1.W10.x",
     "relight1." + "x" * 5000 + ".x", "relight1.é.x"],
)  # fmt: skip
def test_what_is_no_token_says_so(text):
    with pytest.raises(Rejected, match="this is no token"):
        tokens.read(text)
    assert not tokens.signed_by(text, KEY, "alice")


def test_it_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or True)
    assert tokens.signed_by(tokens.mint(wish(), KEY), SecretStr("a secret of somebody"), "alice")
    assert compared


@pytest.mark.parametrize(
    ("what", "key", "says"),
    [
        (wish(), SecretStr("short"), "the secret of alice has 5 characters"),
        (wish(by=""), KEY, "cannot be signed: by"),
        (wish(why="x" * 600), KEY, "cannot be signed: why"),
    ],
)
def test_what_cannot_be_signed(what, key, says):
    with pytest.raises(BadInput, match=says):
        tokens.mint(what, key)


def test_a_secret_is_never_in_what_is_printed():
    token = tokens.mint(wish(expires=NOW + timedelta(hours=1)), KEY)
    body = base64.urlsafe_b64decode(token.split(".")[1] + "==").decode()
    assert KEY.get_secret_value() not in token + body
