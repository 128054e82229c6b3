"""runbooks/triggers.schema.json is what the models say, and says about files what the loader says."""

from __future__ import annotations

import copy

import jsonschema
import pytest

from flows.engine import places, yamlfile
from flows.intake import schema
from flows.intake.source import known

RUNBOOKS = places.data("runbooks")
MADE = schema.triggers_schema()


def faults(value):
    return list(jsonschema.Draft202012Validator(MADE).iter_errors(value))


def shipped():
    found = {p: yamlfile.read(p).data for p in sorted(RUNBOOKS.glob("*/triggers.yaml"))}
    assert found
    return found


def test_the_committed_file_is_current():
    committed = (RUNBOOKS / schema.FILE).read_text(encoding="utf-8")
    assert committed == schema.text(), "write it anew: python -m flows.intake.schema"


def test_it_is_a_schema_and_the_shipped_files_keep_it():
    jsonschema.Draft202012Validator.check_schema(MADE)
    for path, value in shipped().items():
        assert faults(value) == [], path


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("stage",), "always"),
        (("gates", "quorum"), 4),
        (("gates", "confrim"), {}),
        (("gates", "confirm", "probes"), -1),
        (("rules", 0, "stage"), "yes"),
        (("rules", 0, "matches"), {}),
        (("sources", "alertmanager", "source"), "alertmanger"),
        (("sources", "alertmanager", "tokenss"), []),
    ],
)
def test_a_mistake_is_one(where, value):
    wrong = copy.deepcopy(shipped()[RUNBOOKS / "lab" / "triggers.yaml"])
    inner = wrong
    for key in where[:-1]:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    inner[where[-1]] = value
    assert faults(wrong)


def test_every_source_has_its_settings_and_every_number_a_description():
    kinds = MADE["properties"]["sources"]["additionalProperties"]["properties"]["source"]["enum"]
    assert kinds == sorted(known())
    gates = MADE["$defs"]["Gates"]["properties"]
    told = {name for name, p in gates.items() if "description" in p}
    assert told >= {"quorum", "references", "ready_within", "drill_within", "cross_region", "least_on", "switch"}
