"""What Prefect's forms ask for is what the runbooks of the system take."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from flows import offers
from flows.engine import launch, places
from flows.migrate import MigrateOptions
from flows.pg_minor import PgMinorOptions
from flows.update import UpdateOptions


def steps(options):
    """Ids of the steps of the plan; the variables are known, or this raises."""
    asked = options.request("prefect", "a-flow-run")
    assert (asked.trigger, asked.prefect_flow_run_id) == ("prefect", "a-flow-run")
    ready = launch.prepare(asked.system, asked.runbook, asked.mode, asked.vars)
    return {s.id: s for s in ready.plan.steps}


@pytest.mark.parametrize("options", [UpdateOptions, MigrateOptions, PgMinorOptions])
def test_a_form_says_what_each_field_does_and_begins_with_the_system_that_it_is_for(options):
    found = {o.options: o for o in offers.offered()}[options]
    fields = options.model_json_schema()["properties"]
    assert all(f["description"] for f in fields.values())
    assert fields["act"]["enum"] == ["execute", "plan"]
    want = offers.wanted(found, (offers.ForSystem("shop", "shop"),))
    assert want.parameters["options"].keys() == fields.keys()
    assert (want.parameters["options"]["system"], want.schedules) == ("shop", {})
    assert "**" in want.description


def test_the_shipped_file_has_every_offer():
    file = places.data("deployments") / "prefect.yaml"
    assert file.read_text() == offers.prefect_yaml(), "write it again: python -m flows.offers"


def test_a_contract_says_for_which_release_and_a_waiver_has_a_name():
    assert steps(MigrateOptions())["apply"].action.phase_of == "expand"
    contract = MigrateOptions(phase="contract", release="2", waive_old_release="J. Doe: it is read only")
    apply = steps(contract)["apply"].action
    assert (apply.phase_of, apply.release) == ("contract", "2")
    assert contract.request("prefect").waivers == {"old-release": "J. Doe: it is read only"}
    assert MigrateOptions().request("prefect").waivers == {}
    with pytest.raises(ValidationError, match="a contract needs release"):
        MigrateOptions(phase="contract")


def test_without_a_switchover_only_standbys_are_touched():
    whole = steps(PgMinorOptions(restart="all"))
    assert {"fence", "promote", "old-primary"} <= whole.keys()
    assert {s.action.restart for s in whole.values() if s.action.name == "database.run_installed"} == {"all"}
    part = steps(PgMinorOptions(switchover=False))
    assert {s.action.name for s in part.values()} == {"database.run_installed"}
