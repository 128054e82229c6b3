"""The schemas for editors are current, accept what is right and refuse what is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from flows.engine import places, runbook, schema, system, yamlfile
from flows.engine.findings import InvalidFiles
from tasks import catalog

RUNBOOKS = places.data("runbooks")
SYSTEMS = sorted(RUNBOOKS.glob("*/system.yaml"))
BOOKS = sorted(p for p in RUNBOOKS.glob("*/*.yaml") if p.name not in ("system.yaml", "triggers.yaml"))


@pytest.fixture(scope="module")
def books():
    return Draft202012Validator(schema.runbook_schema())


@pytest.fixture(scope="module")
def systems():
    return Draft202012Validator(schema.system_schema())


def read(path: Path):
    return YAML(typ="safe", pure=True).load(path.read_bytes())


def faults(validator, data):
    return [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(data)]


@pytest.mark.parametrize("name", [schema.RUNBOOK_FILE, schema.SYSTEM_FILE])
def test_committed_files_are_current(name):
    committed = (RUNBOOKS / name).read_text(encoding="utf-8")
    assert committed == schema.texts()[name], "write them anew: python -m flows.engine.schema"


def test_they_are_schemas():
    for text in schema.texts().values():
        Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_runbooks_are_valid(books, path):
    assert faults(books, read(path)) == []


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_systems_are_valid(systems, path):
    assert faults(systems, read(path)) == []


def test_there_are_files_to_check():
    assert SYSTEMS
    assert BOOKS


STEP = {
    "id": "a",
    "action": "zones.point",
    "with": {"name": "x.test.", "site": "target", "probe": "tcp:80"},
    "timeout": "5s",
}


@pytest.mark.parametrize(
    "change",
    [
        {"action": "zones.piont"},
        {"with": {"name": "x.test.", "site": "target", "probe": "tcp:80", "nmae": 1}},
        {"with": {"site": "target", "probe": "tcp:80"}},
        {"with": {"name": ["x"], "site": "target", "probe": "tcp:80"}},
        {"with": {"name": "x.test.", "site": "target", "probe": "tcp:80", "rdtype": "AXFR"}},
        {"on_failure": "panic"},
        {"attempts": 0},
        {"attempts": "${n}"},
        {"id": "A"},
        {"timeout": True},
        {"colour": 1},
        {"needs": "b"},
    ],
)
def test_wrong_steps_are_refused_by_schema_and_loader_alike(books, change):
    wrong = {"runbook": "b", "steps": [{**STEP, **change}]}
    assert faults(books, wrong)
    with pytest.raises(InvalidFiles):
        _through_the_loader(wrong)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"timeout": 5},
        {"needs": []},
        {"with": {"name": "${n}", "site": "${n}", "probe": "${n}", "rdtype": "${n}"}},
        {"when": "forced", "restores": "app"},
    ],
)
def test_right_steps_are_taken(books, change):
    assert faults(books, {"runbook": "b", "vars": {"n": "A"}, "steps": [{**STEP, **change}]}) == []


def test_required_parameters_make_with_required(books):
    step = {k: v for k, v in STEP.items() if k != "with"}
    assert faults(books, {"runbook": "b", "steps": [step]})


def _through_the_loader(data):
    document = yamlfile.Document("x.yaml", copy.deepcopy(data))
    loaded = runbook.from_document(document)
    for step in loaded.runbook.steps:
        cls = catalog.actions().get(step.action)
        if cls is None:
            raise InvalidFiles([document.finding("unknown-action", step.action)])
        yamlfile.validated(document, cls, dict(step.with_))


SYSTEM = {
    "system": "x",
    "sites": {"west": {}},
    "components": {"storage": {"provider": "health.http", "urls": {"west": "http://127.0.0.1/"}}},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("components", "storage", "provider"), "health.htpt"),
        (("components", "storage", "ulrs"), {}),
        (("components", "storage", "urls"), 5),
        (("components", "storage", "timeout"), []),
        (("objectives",), {"app": {"rot": "5m"}}),
        (("sites",), {}),
        (("colour",), 1),
        (("scaling",), {"cpu": {"warning": "70%"}}),
    ],
)
def test_wrong_systems_are_refused_by_schema_and_loader_alike(systems, path, value):
    wrong = copy.deepcopy(SYSTEM)
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert faults(systems, SYSTEM) == []
    assert faults(systems, wrong)
    with pytest.raises(InvalidFiles):
        system.check(yamlfile.Document("x.yaml", wrong))


def test_descriptions_come_from_the_docstrings():
    made = schema.runbook_schema()
    properties = made["$defs"]["StepSpec"]["properties"]
    assert properties["backoff"]["description"].startswith("seconds before the second attempt; doubles")
    assert properties["with"]["description"] == "parameters of the action (key ``with``)."
    assert "``ask`` a person." in properties["on_failure"]["description"]
    assert made["$defs"]["zones.point"]["description"].startswith("Point a name at a site")


def test_written_where_they_are_looked_for(tmp_path):
    schema.write(tmp_path)
    assert {p.name: p.read_text(encoding="utf-8") for p in tmp_path.iterdir()} == schema.texts()
