"""One way to AWS for every provider: clients by boto3's own configuration, errors as ours, every call heard.

Credentials, assumed roles, endpoints, FIPS and dual-stack are boto3's own (environment, ``~/.aws/config`` with the
``role_arn`` of a profile, instance metadata; boto3 guide, *Configuration* and *Credentials*). A region is always named
by the caller: calls go to the region that is being recovered, never through the one that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from pydantic import BaseModel, ConfigDict, Field

from tasks.contract import in_thread
from tasks.errors import EffectUnknown, NotYet, Rejected, RelightError, Unreachable
from tasks.quantities import Duration
from tasks.reached import HEARD, Call

T = TypeVar("T")

SLOWED = frozenset({
    "ScalingActivityInProgress", "ResourceContention", "TooManyInvalidationsInProgress",
    "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException",
    "TooManyRequestsException", "RequestLimitExceeded", "SlowDown", "PriorRequestNotComplete", "BandwidthLimitExceeded",
    "LimitExceededException", "EC2ThrottledException", "TransactionInProgressException",
    "ProvisionedThroughputExceededException", "EndpointTemporarilyUnavailableException",
})  # fmt: skip
"""Codes by which AWS says "later": nothing was done (botocore/retries/standard.py; Route 53's and ARC's own)."""
DENIED = frozenset({
    "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthFailure", "InvalidClientTokenId",
    "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "UnrecognizedClientException", "OptInRequired",
})  # fmt: skip


class Account(BaseModel):
    """The settings that every provider on AWS has.

    Attributes:
        profile: of boto3's shared configuration; None: boto3's default chain.
        timeout: to connect, and to wait for each read. A call is sent once; the engine tries again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str | None = None
    timeout: Duration = Field(default=5.0, gt=0)


class Aws:
    """The clients of one component, one for each service and region; built on first use, in a thread."""

    def __init__(self, account: Account, component: str) -> None:
        self._account, self._component = account, component
        self._clients: dict[tuple[str, str, str | None], Any] = {}
        self._session: Any = None
        self._building = asyncio.Lock()

    async def client(self, service: str, region: str, endpoint: str | None = None) -> Any:
        """boto3's client. Raises Rejected where boto3's configuration is wrong (no such profile, region or service).

        ``endpoint``: a URL that belongs to one resource (an ARC cluster's); None: the service's own, as boto3 finds it.
        """
        async with self._building:
            have = self._clients.get((service, region, endpoint))
            if have is None:
                have = self._clients[service, region, endpoint] = await self.call(
                    f"building the client of {service} in {region}", lambda: self._build(service, region, endpoint)
                )
            return have

    async def call(self, what: str, call: Callable[[], T], *, changes: bool = False) -> T:
        """Run a blocking call of a client in a thread; botocore's errors as ours.

        Args:
            what: the operation and its object, for the message.
            changes: the call may change something, so a reply that is lost leaves its effect unknown.

        Raises Unreachable (nothing was sent), NotYet (slowed down: nothing was done), EffectUnknown (``changes`` and no
        usable reply) or Unreachable, and Rejected with ``code`` for every other no.
        """
        lost: type[RelightError] = EffectUnknown if changes else Unreachable
        name = f"{self._component}: {what}"
        try:
            return await in_thread(call)
        except BotoConnectionError as e:  # refused, unresolved, TLS, or no connection in time
            raise Unreachable(f"{name}: no connection ({e})") from e
        except HTTPClientError as e:  # closed, or silent for longer than the time-out, after the request went out
            raise lost(f"{name}: no answer within {self._account.timeout:g} s ({e})") from e
        except ClientError as e:
            raise self._answered(e, name, lost) from e
        except ResponseParserError as e:  # the page of a proxy in an outage, say; no BotoCoreError
            raise lost(f"{name}: the answer is none of AWS ({str(e)[:200]})") from e
        except BotoCoreError as e:
            raise Rejected(f"{name} could not be sent ({e}); look at boto3's configuration") from e

    @staticmethod
    def _answered(e: ClientError, name: str, lost: type[RelightError]) -> RelightError:
        code = str(e.response["Error"].get("Code", "?"))
        status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in SLOWED or status == 429:
            return NotYet(f"{name}: AWS asks to come back later ({code})", code=code)
        if status >= 500:
            return lost(f"{name} failed on the other side, HTTP {status} ({e})", code=code)
        if code in DENIED:
            return Rejected(f"{name} is not allowed ({code}): {e}; see deployments/iam for the policy", code=code)
        return Rejected(f"{name} was refused: {code}, HTTP {status} ({e})", code=code)

    def _build(self, service: str, region: str, endpoint: str | None) -> Any:
        if self._session is None:
            self._session = boto3.session.Session(profile_name=self._account.profile)
        client = self._session.client(
            service,
            region_name=region,
            endpoint_url=endpoint,
            config=Config(
                connect_timeout=self._account.timeout,
                read_timeout=self._account.timeout,
                retries={"total_max_attempts": 1, "mode": "standard"},  # the engine tries again, and says so
            ),
        )
        return hearing(client, service, region)

    async def aclose(self) -> None:
        """Close every client."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def hearing(client: Any, service: str, region: str) -> Any:
    """``client``, whose every request is told to ``HEARD``."""

    def heard(request: Any, event_name: str = "", **_more: Any) -> None:
        listen = HEARD.get()
        if listen is not None:
            operation = event_name.rpartition(".")[2]
            listen(Call(service, operation, region, urlsplit(request.url).netloc))

    client.meta.events.register("before-send", heard)
    return client
