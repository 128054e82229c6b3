"""Supabase's Management API as published, over HTTP: it checks every request against the documented schemas.

No package of npm or PyPI carries the OpenAPI document itself; npm ``supabase-management-js`` 2.0.2 carries the types
that were generated from it. ``SCHEMAS`` says the same of the calls that relight makes: paths, methods, bodies, queries.
A request that does not fit is answered 400 and noted in ``violations``. The rate limit is 60 a minute, as documented.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
from aws_conformance import _cut, serving
from werkzeug import Request, Response

REF, TOKEN, ORGANIZATION = "venuevenuevenuevenue", "sbp_0123456789", "events"
REGIONS = [
    "us-east-1", "us-east-2", "us-west-1", "us-west-2", "ap-east-1", "ap-southeast-1", "ap-northeast-1",
    "ap-northeast-2", "ap-southeast-2", "eu-west-1", "eu-west-2", "eu-west-3", "eu-north-1", "eu-central-1",
    "eu-central-2", "ca-central-1", "ap-south-1", "sa-east-1",
]  # fmt: skip


def body(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXTS = {"type": "array", "items": {"type": "string"}}
SCHEMAS: dict[tuple[str, str], dict[str, Any]] = {
    ("GET", ""): {},
    ("GET", "/health"): {"query": {"services"}},
    ("GET", "/config/database/pooler"): {},
    ("PATCH", "/config/database/pooler"): {
        "body": body(
            [],
            default_pool_size={"type": ["integer", "null"], "minimum": 0, "maximum": 3000},
            pool_mode={"enum": ["transaction", "session"]},
        )
    },
    ("PUT", "/config/database/postgres"): {"body": body([], restart_database={"type": "boolean"})},
    ("POST", "/read-replicas/setup"): {"body": body(["read_replica_region"], read_replica_region={"enum": REGIONS})},
    ("POST", "/read-replicas/remove"): {
        "body": body(["database_identifier"], database_identifier={"type": "string", "minLength": 1})
    },
    ("GET", "/database/backups"): {},
    ("POST", "/database/backups/restore-pitr"): {
        "body": body(["recovery_time_target_unix"], recovery_time_target_unix={"type": "integer", "minimum": 0})
    },
    ("POST", "/network-bans/retrieve"): {},
    ("DELETE", "/network-bans"): {"body": body(["ipv4_addresses"], ipv4_addresses=TEXTS)},
    ("GET", "/network-restrictions"): {},
    ("POST", "/network-restrictions/apply"): {"body": body([], dbAllowedCidrs=TEXTS, dbAllowedCidrsV6=TEXTS)},
}
"""(method, path after the project) -> what a request may hold."""


@dataclass
class Supabase:
    """One project. Everything may be changed by the test while it runs."""

    name: str = "venue"
    status: str = "ACTIVE_HEALTHY"
    databases: list[dict[str, Any]] = field(default_factory=list)
    pool_size: int = 15
    pitr: bool = True
    latest: int | None = None
    """Unix time of the newest moment that is kept; None: a minute ago."""
    banned: list[str] = field(default_factory=list)
    cidrs: list[str] = field(default_factory=list)
    others: int = 0
    """Other projects of the organization, which are listed before this one."""
    takes_s: float = 0.2
    on_restore: Any = None
    """Called with the Unix time, while the project is RESTORING."""
    on_restart: Any = None
    heard: list[tuple[str, str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    faults: deque[str] = field(default_factory=deque)
    """Of the next requests: ``lost``, ``dropped``, ``429``, ``503``, ``403``."""
    frozen: bool = False
    """A new size of the pool is answered as asked, and takes no effect."""
    limit: int = 60
    retry_s: int = 1
    """What a request above the limit is told to wait."""
    times: deque[float] = field(default_factory=deque)
    works: list[threading.Timer] = field(default_factory=list)
    url: str = ""

    def later(self, work: Any) -> None:
        timer = threading.Timer(self.takes_s, work)
        self.works.append(timer)
        timer.start()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        return self._answer(Request(environ))(environ, start_response)

    def _answer(self, request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _json({"message": "Unauthorized"}, 401)
        fault = self.faults.popleft() if self.faults else ""
        now = time.monotonic()
        while self.times and self.times[0] < now - 60:
            self.times.popleft()
        self.times.append(now)
        if len(self.times) > self.limit or fault == "429":
            return Response(
                '{"message": "ThrottlerException: Too Many Requests"}', 429, {"Retry-After": str(self.retry_s)}
            )
        if fault == "403":  # a fine-grained token without database_pooling_config_write, say
            return _json({"message": "Your account does not have the necessary privileges"}, 403)
        if fault == "503":
            return Response("upstream connect error", 503)
        if fault == "dropped":
            return _cut(request.environ)
        given = json.loads(request.get_data() or b"null")
        found = self._found(request, given)
        return _cut(request.environ) if fault == "lost" else found

    def _found(self, request: Request, given: Any) -> Response:
        if request.path == f"/v1/organizations/{ORGANIZATION}/projects":
            self.heard.append((request.method, "projects", dict(request.args)))
            offset, limit = int(request.args["offset"]), int(request.args["limit"])
            return _json(
                {"projects": self._projects()[offset : offset + limit], "pagination": {"count": self.others + 1}}
            )
        match = re.fullmatch(rf"/v1/projects/{REF}(/.*)?", request.path)
        key = (request.method, (match[1] or "") if match else "?")
        self.heard.append((*key, given))
        if key not in SCHEMAS:
            self.violations.append(f"{request.method} {request.path} is not documented")
            return _json({"message": "Not found"}, 404)
        wrong = self._against(SCHEMAS[key], request, given)
        if wrong:
            self.violations.append(f"{key}: {wrong}")
            return _json({"message": wrong}, 400)
        return self._do(*key, given)

    @staticmethod
    def _against(schema: dict[str, Any], request: Request, given: Any) -> str:
        if "body" in schema:
            try:
                jsonschema.validate(given, schema["body"])
            except jsonschema.ValidationError as e:
                return e.message
        elif given is not None:
            return "a body where none is documented"
        extra = set(request.args) ^ schema.get("query", set())
        return f"query parameters {extra}" if extra else ""

    def _projects(self) -> list[dict[str, Any]]:
        mine = {"ref": REF, "name": self.name, "region": "eu-west-1", "status": self.status}
        mine["databases"] = [
            {"identifier": REF, "region": "eu-west-1", "type": "PRIMARY", "status": self.status},
            *self.databases,
        ]
        return [{"ref": f"other{n}", "databases": []} for n in range(self.others)] + [mine]

    def _do(self, method: str, path: str, given: Any) -> Response:
        verb = {
            "": lambda _: _json(self._projects()[-1]),
            "/health": lambda _: _json([{"name": n, "healthy": True, "status": self.status} for n in ("db", "pooler")]),
            "/read-replicas/setup": self._set_up,
            "/read-replicas/remove": self._remove,
            "/database/backups": lambda _: _json(self._kept()),
            "/database/backups/restore-pitr": self._restore,
            "/config/database/pooler": self._pooler if method == "GET" else self._resize,
            "/config/database/postgres": self._restart,
            "/network-bans/retrieve": lambda _: _json({"banned_ipv4_addresses": self.banned}, 201),
            "/network-bans": self._unban,
            "/network-restrictions": lambda _: _json(self._restrictions()),
            "/network-restrictions/apply": self._admit,
        }[path]
        return verb(given)

    def _set_up(self, given: Any) -> Response:
        region = given["read_replica_region"]
        if any(d["region"] == region for d in self.databases):
            return _json({"message": f"a read replica exists in {region}"}, 400)
        new = {
            "identifier": f"{REF}-rr-{region}",
            "region": region,
            "type": "READ_REPLICA",
            "status": "INIT_READ_REPLICA",
        }
        self.databases.append(new)
        self.later(lambda: new.update(status="ACTIVE_HEALTHY"))
        return Response("", 201)

    def _remove(self, given: Any) -> Response:
        left = [d for d in self.databases if d["identifier"] != given["database_identifier"]]
        if len(left) == len(self.databases):
            return _json({"message": "no such read replica"}, 404)
        self.databases = left
        return Response("", 201)

    def _kept(self) -> dict[str, Any]:
        now = datetime.now(UTC)
        bounds = {
            "earliest_physical_backup_date_unix": int((now - timedelta(days=7)).timestamp()),
            "latest_physical_backup_date_unix": self.latest or int(now.timestamp()) - 60,
        }
        daily = {"is_physical_backup": True, "status": "COMPLETED", "inserted_at": "2026-11-25T03:00:00.000Z"}
        return {
            "region": "eu-west-1",
            "walg_enabled": True,
            "pitr_enabled": self.pitr,
            "backups": [daily],
            "physical_backup_data": bounds if self.pitr else {},
        }

    def _restore(self, given: Any) -> Response:
        if not self.pitr or self.status != "ACTIVE_HEALTHY":
            return _json({"message": f"cannot restore, the project is {self.status}"}, 400)
        self.status = "RESTORING"

        def done() -> None:
            if self.on_restore:
                self.on_restore(given["recovery_time_target_unix"])
            self.status = "ACTIVE_HEALTHY"

        self.later(done)
        return Response("", 201)

    def _pooler(self, _given: Any) -> Response:
        """SupavisorConfigResponse: a row for each database of the project."""
        sizes = {"pool_mode": "transaction", "default_pool_size": self.pool_size, "max_client_conn": 200}
        rows = [{"identifier": d["identifier"], "database_type": "READ_REPLICA", **sizes} for d in self.databases]
        return _json([*rows, {"identifier": REF, "database_type": "PRIMARY", **sizes}])

    def _resize(self, given: Any) -> Response:
        """UpdateSupavisorConfigResponse."""
        size = given.get("default_pool_size", self.pool_size)
        if not self.frozen:
            self.pool_size = size
        return _json({"default_pool_size": size, "pool_mode": "transaction"})

    def _restart(self, given: Any) -> Response:
        if given.get("restart_database") and self.on_restart:
            self.later(self.on_restart)
        return _json({})

    def _unban(self, given: Any) -> Response:
        self.banned = [b for b in self.banned if b not in given["ipv4_addresses"]]
        return Response("", 200)

    def _admit(self, given: Any) -> Response:
        self.cidrs = [*given["dbAllowedCidrs"], *given["dbAllowedCidrsV6"]]
        return _json(self._restrictions(), 201)

    def _restrictions(self) -> dict[str, Any]:
        four, six = [c for c in self.cidrs if ":" not in c], [c for c in self.cidrs if ":" in c]
        config = {"dbAllowedCidrs": four, "dbAllowedCidrsV6": six}
        return {"entitlement": "allowed", "config": config, "status": "applied"}


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, {"Content-Type": "application/json"})


@contextlib.contextmanager
def supabase() -> Iterator[Supabase]:
    """A running server. Fails for what came in against the schemas."""
    made = Supabase()
    with serving(made) as url:
        made.url = url
        yield made
        for work in made.works:
            work.join(120)
    assert not made.violations, made.violations
