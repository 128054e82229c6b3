"""The webhook endpoints: recognise, keep, answer. Nothing else is on the path of a request.

Answers are those that are right for every sender: 202 kept, 200 nothing to do (and why), 401/403 not recognised, 400,
413, 415, and 503 with Retry-After whenever it could not be kept, so that it is sent again. Never 429 or 500 on purpose:
some senders drop what is answered so.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPBasic, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from flows.intake import body as bodies
from flows.intake.answers import BODY, RESPONSES, Health
from flows.intake.event import Delivery, Event, Malformed, Refused, Unavailable, normalise
from flows.intake.inbox import Inbox
from flows.intake.source import Source
from tasks.errors import MissingSecret

BODY_S = 10.0
"""A body that takes longer is somebody who wants to hold the connection."""
SCHEMES = (
    HTTPBearer(auto_error=False, description="One of the endpoint's `tokens`."),
    HTTPBasic(auto_error=False, description="A token as the password; any name."),
    APIKeyHeader(name="X-Relight-Token", auto_error=False),
)
"""How a token may be shown, for the description only: each source recognises its sender itself."""
log = logging.getLogger("relight.intake")

Preview = Callable[[Event], Awaitable[dict[str, Any]]]
"""What would be decided about an event; changes nothing."""


class Receiver:
    """The endpoints over one inbox.

    Attributes:
        endpoints: name in the path -> source. kept: called after something new was kept.
        preview: the decision for a test delivery.
    """

    def __init__(
        self,
        endpoints: dict[str, Source],
        inbox: Inbox,
        kept: Callable[[], None] = lambda: None,
        preview: Preview | None = None,
    ) -> None:
        self.endpoints, self.inbox, self.kept, self.preview = endpoints, inbox, kept, preview
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "relight_deliveries_total",
            "Deliveries by endpoint and answer.",
            ("endpoint", "status"),
            registry=self.registry,
        )
        self._took = Histogram(
            "relight_delivery_seconds", "From the request to its answer.", ("endpoint",), registry=self.registry
        )

    async def take(self, request: Request, endpoint: str, token: str = "") -> Response:
        """Answer one delivery."""
        began = asyncio.get_running_loop().time()
        name = endpoint if endpoint in self.endpoints else "unknown"
        try:
            response = await self._take(request, endpoint, token)
        except Refused as e:
            log.warning("endpoint %s: %d: %s", name, e.status, e)
            headers = {"Retry-After": str(e.retry_s or 5)} if e.status == 503 else {}
            if e.status == 408:  # what is left of its body is not waited for
                headers["Connection"] = "close"
            response = JSONResponse({"error": str(e)}, e.status, headers)
        self._answers.labels(name, str(response.status_code)).inc()
        self._took.labels(name).observe(asyncio.get_running_loop().time() - began)
        return response

    async def _take(self, request: Request, endpoint: str, token: str) -> Response:
        source = self.endpoints.get(endpoint)
        if source is None:
            raise Refused("no such endpoint", status=404)
        raw = await _body(request, min(source.most_bytes, bodies.MOST_BYTES))
        delivery = Delivery(
            endpoint=endpoint,
            body=bodies.decompressed(raw, request.headers.get("content-encoding", ""), source.most_bytes),
            received_at=datetime.now(UTC),
            headers={k.lower(): v for k, v in request.headers.items()},
            query=dict(request.query_params),
            method=request.method,
            token=token,
            peer=request.client.host if request.client else "",
        )
        try:
            auth = await source.authenticate(delivery)
        except MissingSecret as e:
            raise Unavailable(f"a secret of this endpoint cannot be read: {e}", retry_s=30) from e
        parsed = bodies.strict_json(delivery.body) if delivery.body else None
        shaken = await source.handshake(delivery, parsed)
        if shaken is not None:
            return JSONResponse({"said": shaken.said}, shaken.status, dict(shaken.headers))
        if parsed is None:
            raise Malformed("the body is empty")
        transport = source.transport_id(delivery, parsed)
        events = tuple(normalise(a, delivery, auth, source.name, transport) for a in source.read(parsed, delivery))
        return await self._keep(source, delivery, events, transport)

    async def _keep(self, source: Source, delivery: Delivery, events: tuple[Event, ...], transport: str) -> Response:
        key = transport or hashlib.sha256(delivery.body).hexdigest()
        kept = await asyncio.wrap_future(self.inbox.keep(delivery, key, events))
        if not kept.new:
            return JSONResponse({"taken": "duplicate", "delivery": kept.delivery}, 200)
        self.kept()
        max_age_s = source.settings.max_age
        said: dict[str, Any] = {"delivery": kept.delivery, "events": list(kept.events)}
        tests = [e for e in events if e.is_test]
        if tests and self.preview is not None:
            return JSONResponse({"taken": "test", **said, "would": [await self.preview(e) for e in tests]}, 200)
        if not kept.fresh:
            return JSONResponse({"taken": "known", **said}, 200)
        if all(e.age_s > max_age_s for e in events):
            return JSONResponse({"taken": "stale", **said}, 200)
        if not any(e.kind == "firing" for e in events):
            return JSONResponse({"taken": "noted", **said}, 200)
        return JSONResponse({"taken": "accepted", **said}, 202)

    def metrics(self) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


async def _body(request: Request, most: int) -> bytes:
    """At most ``most`` bytes, within ``BODY_S``. Raises Refused."""
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                found += piece
                if len(found) > most:
                    raise bodies.TooLarge(f"the body has more than {most} bytes")
    except TimeoutError:
        raise Refused(f"the body did not come within {BODY_S:g} s", status=408) from None
    return bytes(found)


def application(receiver: Receiver, health: Callable[[], dict[str, Any]]) -> FastAPI:
    """The ASGI application, described at ``/openapi.json``."""
    app = FastAPI(title="relight", version=version("relight"), description="Alerts in.", docs_url=None, redoc_url=None)

    async def deliver(request: Request, endpoint: str) -> Response:
        return await receiver.take(request, endpoint)

    async def deliver_with_token(request: Request, endpoint: str, token: str) -> Response:
        return await receiver.take(request, endpoint, token)

    for path, take, name in (
        ("/alerts/{endpoint}", deliver, "deliver"),
        ("/alerts/{endpoint}/{token}", deliver_with_token, "deliver_with_token"),
    ):
        for method in ("POST", "PUT", "OPTIONS"):
            app.add_api_route(
                path,
                take,
                methods=[method],
                operation_id=f"{name}_{method.lower()}",
                summary="Deliver an alert"
                if method != "OPTIONS"
                else "Ask whether this endpoint is meant (CloudEvents)",
                responses=RESPONSES,
                response_class=JSONResponse,
                openapi_extra=BODY if method != "OPTIONS" else None,
                dependencies=[Depends(one) for one in SCHEMES] if take is deliver else None,
            )

    @app.get("/healthz", summary="Does it take deliveries?", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> Response:
        found = health()
        return JSONResponse(found, 200 if found.get("ok") else 503)

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return receiver.metrics()

    return app
