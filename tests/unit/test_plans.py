"""Plans of two sites, compared without a server."""

from __future__ import annotations

import pytest

from tasks.database._plans import Planning, differences, miscollated, worse


def scan(kind, relation="t", cost=10.0, index=""):
    return {"Node Type": kind, "Relation Name": relation, "Index Name": index, "Total Cost": cost}


def over(*parts, kind="Nested Loop", cost=20.0):
    return {"Node Type": kind, "Total Cost": cost, "Plans": list(parts)}


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (scan("Index Scan"), scan("Index Scan", cost=1000), ""),
        (scan("Index Scan"), scan("Seq Scan", cost=5), "t is read whole there"),
        (over(scan("Bitmap Heap Scan", "a"), scan("Seq Scan", "b")), over(scan("Seq Scan", "a"), scan("Seq Scan", "b")),
         "a is read whole there"),
        (scan("Seq Scan"), scan("Index Scan", cost=5), ""),
        (over(scan("Seq Scan")), over(scan("Seq Scan"), kind="Hash Join", cost=30), ""),
        (over(scan("Seq Scan")), over(scan("Seq Scan"), kind="Hash Join", cost=50), "cost 50 there, 20 here"),
    ],
)  # fmt: skip
def test_a_plan_is_worse_when_its_shape_is(ours, theirs, why):
    found = worse(ours, theirs, 2.0)
    assert (why in found) if why else found == ""


def test_settings_that_differ_are_named_with_both_values():
    ours, theirs = Planning({"a": "1", "b": "2"}, (None, None)), Planning({"a": "1", "b": "3"}, (None, None))
    assert differences(ours, theirs) == {"b": "2 here, 3 there"}


@pytest.mark.parametrize(("versions", "wrong"), [((None, None), 0), (("2.36", "2.36"), 0), (("2.28", "2.36"), 1)])
def test_another_c_library_is_told(versions, wrong):
    assert bool(miscollated("n", Planning({}, versions))) == bool(wrong)
