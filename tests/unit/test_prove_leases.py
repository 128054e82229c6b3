"""A lease in a store, in ``relight prove``: a module of its own, so that another worker can take it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.engine import launch, places
from flows.engine.scenario import SCENARIOS
from flows.engine.schedule import Deviation, deviations
from flows.engine.simulate import Case, play

LEASES = {
    "postgresql": "{provider: leases.postgresql, address: '127.0.0.1:1'}",
    "s3": "{provider: leases.s3, bucket: ops, access_key: 'env:A', secret_key: 'env:B'}",
    "rfc2136": "{provider: leases.rfc2136, zone: ops.test., primary: '127.0.0.1:1', key_name: k., key_secret: 'env:A'}",
}


def stored(where: str, tmp_path: Path) -> Case:
    """The lab's failover with its lease in a store."""
    shutil.copytree(places.data("runbooks") / "lab", tmp_path / "lab")
    file = tmp_path / "lab" / "system.yaml"
    text = file.read_text()
    file.write_text(text.replace("\ncomponents:\n", f"\ncomponents:\n  lease: {LEASES[where]}\n"))
    request = launch.Request(str(tmp_path / "lab"), "failover", "forced")
    return Case(launch.prepare(request.system, "failover", "forced"), "forced", SCENARIOS["kill-primary"], request)


@pytest.mark.parametrize("where", LEASES)
def test_a_lease_in_a_store_survives_every_crash_and_fault_of_its_own(where, tmp_path):
    what = stored(where, tmp_path)
    calm = play(what, (), None)
    assert (calm.verdict, calm.violations) == ("succeeded", [])
    own = [e for e in calm.trace if e.what.startswith("lease.")]
    assert {e.kind for e in own} == {"read", "change"}
    records = [e for e in calm.trace if e.kind == "record"]
    chosen = [Deviation(e.at, kind) for e in own for kind in deviations(e)]
    chosen += [Deviation(e.at, kind) for e in records[::6] for kind in ("kill", "pause", "second")]
    for deviation in chosen:
        story = play(what, (deviation,), calm.end)
        assert story.violations == [], (deviation, story.verdicts)
