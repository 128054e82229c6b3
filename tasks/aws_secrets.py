"""``aws-secret:`` references: AWS Secrets Manager, by boto3's own configuration.

``aws-secret:NAME-OR-ARN[?region=R1[,R2…]][#KEY]``. ``KEY`` takes one value of a secret that is a JSON object, as RDS
and the console make them. Regions are tried in their order (a replicated secret has one name in all of them: write the
region that is recovered first); an ARN names its own, else boto3's default region is asked. ``?`` and ``#`` are in no
name of a secret (API Reference, *CreateSecret*).

What was read is kept: for ``FRESH_S`` it is not asked for again, and where AWS does not answer later the last value
stands. In an outage a password of an hour ago is better than none.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.parsers import ResponseParserError

from tasks.aws import SLOWED, hearing
from tasks.errors import MissingSecret, Unreachable

TIMEOUT_S = 3.0
FRESH_S = 600.0

_read: dict[str, tuple[str, float]] = {}
_reading = threading.Lock()


@dataclass(frozen=True)
class Address:
    """A reference, taken apart. ``regions``: None asks boto3's default."""

    name: str
    regions: tuple[str | None, ...]
    key: str


def parse(text: str) -> Address:
    """The part after ``aws-secret:``. Raises MissingSecret for one that is malformed."""
    rest, _, key = text.partition("#")
    name, _, query = rest.partition("?")
    asked = parse_qs(query, keep_blank_values=True)
    regions = [r for value in asked.pop("region", []) for r in value.split(",")]
    if not name or asked or (query and not all(regions)) or ("#" in text and not key):
        raise MissingSecret(
            f"secret aws-secret:{text}: expected aws-secret:NAME-OR-ARN[?region=R1,R2][#KEY], for example"
            " aws-secret:venue/database?region=eu-central-1#password"
        )
    if not regions and name.startswith("arn:"):
        regions = name.split(":")[3:4]
    return Address(name, tuple(regions) or (None,), key)


def fetch(text: str) -> str:
    """The value; blocks for up to ``TIMEOUT_S`` a region. Raises MissingSecret, Unreachable; never shows a value."""
    address = parse(text)
    with _reading:
        known = _read.get(text)
        if known and time.monotonic() - known[1] < FRESH_S:
            return known[0]
        try:
            value = _picked(_asked(address, text), address, text)
        except Unreachable:
            if known is None:
                raise
            return known[0]
        _read[text] = (value, time.monotonic())
        return value


def forget() -> None:
    """Nothing that was read is kept."""
    with _reading:
        _read.clear()


def _asked(address: Address, text: str) -> str:
    """The secret's string from the first region that answers with one."""
    failed: list[str] = []
    retryable = False
    for region in address.regions:
        where = region or "boto3's default region"
        try:
            return _ask(address.name, region)
        except ClientError as e:
            code = str(e.response["Error"].get("Code", "?"))
            status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            retryable = retryable or code in SLOWED or status >= 500 or code.startswith("Internal")
            failed.append(f"{where}: {code}")
        except (HTTPClientError, ResponseParserError) as e:
            retryable = True
            failed.append(f"{where}: no answer ({type(e).__name__})")
        except BotoCoreError as e:
            retryable = retryable or "Connect" in type(e).__name__
            failed.append(f"{where}: {e}")
        except KeyError:
            failed.append(f"{where}: it is binary, expected a string")
    message = f"secret aws-secret:{text} cannot be read ({'; '.join(failed)})"
    if retryable:
        raise Unreachable(f"{message}; AWS Secrets Manager does not answer")
    raise MissingSecret(f"{message}. Create it there, and allow secretsmanager:GetSecretValue (deployments/iam).")


def _ask(name: str, region: str | None) -> str:
    config = Config(
        connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1, "mode": "standard"}
    )
    client: Any = boto3.session.Session().client("secretsmanager", region_name=region, config=config)
    hearing(client, "secretsmanager", client.meta.region_name)
    with contextlib.closing(client):
        return str(client.get_secret_value(SecretId=name)["SecretString"])


def _picked(whole: str, address: Address, text: str) -> str:
    if not address.key:
        return whole
    with contextlib.suppress(json.JSONDecodeError):
        found = json.loads(whole)
        if isinstance(found, dict) and isinstance(found.get(address.key), str | int):
            return str(found[address.key])
    raise MissingSecret(f"secret aws-secret:{text}: it is no JSON object with a value {address.key!r}")
