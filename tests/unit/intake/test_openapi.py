"""What the receiver says about itself is so: schemathesis calls every operation that ``/openapi.json`` describes."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from flows.intake import service
from flows.intake.inbox import Inbox
from flows.intake.receiver import Receiver, application
from flows.intake.rules import load

TRIGGERS = (
    "sources: {am: {source: alertmanager, tokens: ['env:AM']}, open: {source: alertmanager, unauthenticated: true}}"
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "triggers.yaml").write_text(TRIGGERS)
    inbox = Inbox(folder / "inbox.sqlite3")
    receiver = Receiver(service.endpoints([load(folder)], "127.0.0.1"), inbox)
    yield application(receiver, lambda: {"ok": True, "endpoints": ["am", "open"]})
    inbox.close()


@pytest.fixture
def described(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app)


OPERATIONS = 8
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.mark.parametrize("number", range(OPERATIONS))
def test_every_operation_answers_as_described(described, monkeypatch, number):
    monkeypatch.setenv("AM", "a-secret-of-this-test")
    operation = [found.ok() for found in described.get_all_operations()][number]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(case=operation.as_strategy(), known=booleans())
    def called(case, known):
        if known and case.path_parameters.get("endpoint"):
            case.path_parameters["endpoint"] = "open"  # else nearly every call ends with 404
        case.call_and_validate(checks=CHECKS)

    called()


def test_what_is_described(app):
    found = app.openapi()
    assert set(found["paths"]) == {"/alerts/{endpoint}", "/alerts/{endpoint}/{token}", "/healthz", "/metrics"}
    post = found["paths"]["/alerts/{endpoint}"]["post"]
    assert set(post["responses"]) >= {"200", "202", "400", "401", "403", "404", "408", "413", "415", "503"}
    assert not {"429", "500"} & set(post["responses"])
    assert len(post["security"]) == 3
    assert sum(len(path) for path in found["paths"].values()) == OPERATIONS
    ids = [op["operationId"] for path in found["paths"].values() for op in path.values()]
    assert len(ids) == len(set(ids))
