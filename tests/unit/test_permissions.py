"""The judgement of permissions that nobody uses: what is proven, what is not, and what is said instead."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from flows.engine import places, system
from flows.reviews import awsusers, dbroles
from flows.reviews.dbroles import Seen
from tasks.database._accounts import Accounts, Role

NOW = datetime(2026, 11, 26, 6, tzinfo=UTC)
LONG = NOW - timedelta(days=120)


def role(name="clerk", **more):
    given = {"quoted": name, "login": True, "powers": (), "bootstrap": False, "valid_until": None, "owns": 0}
    rest = {"granted": 1, "member_of": (), "reaches": (), "members": 0, "connected": 0, "counted": False}
    return Role(name, **{**given, **rest, **more})


def node(*roles, name="pg1", since=LONG, lost=0, **more):
    return Accounts(name, more.pop("replica", False), roles, since, lost, "off", **more)


def judged(*views, lost=None, named=("relight",)):
    seen = Seen("database", views[0].roles, views, lost or {}, frozenset(named))
    return {f.key: f for f in dbroles.judge(seen, NOW)}


UNSEEN = "roles-unseen database"


def test_a_role_that_ran_nothing_for_long_is_told_with_the_way_back():
    found = judged(node(role()), node(role(), name="pg2", replica=True))[UNSEEN]
    assert (found.severity, found.title) == (
        "warning",
        "1 role that can log in to database ran no statement in 120 days: clerk",
    )
    assert found.fix == "ALTER ROLE clerk NOLOGIN;    -- back: ALTER ROLE clerk LOGIN;"


@pytest.mark.parametrize(
    ("view", "lost", "why"),
    [
        (node(role(), since=NOW - timedelta(days=3)), {}, "began to count statements 3 days ago"),
        (node(role(), since=None), {}, "at a time that it does not tell"),
        (node(role(), lost=7), {}, "threw out entries"),
        (node(role(counted=None), missing={"statements": "no such relation"}), {}, "pg1: no such relation"),
        (node(role()), {"pg2": "silent"}, "pg2 was not asked: silent"),
    ],
)
def test_what_was_not_counted_long_enough_or_everywhere_is_unknown_and_has_no_command(view, lost, why):
    found = judged(view, lost=lost)[UNSEEN]
    assert found.severity == "unknown"
    assert why in found.evidence
    assert "NOLOGIN" not in found.fix


@pytest.mark.parametrize("seen", [{"connected": 1}, {"counted": True}])
def test_a_role_that_is_seen_on_any_node_is_used(seen):
    found = judged(node(role()), node(role(**seen), name="pg2", replica=True))
    assert UNSEEN not in found
    assert "role-empty database clerk" not in judged(node(role(granted=0, **seen)))


def test_what_holds_nothing_is_told_by_itself():
    found = judged(node(role(granted=0)))
    assert found["role-empty database clerk"].severity == "warning"
    assert UNSEEN not in found
    for held in ({"owns": 1}, {"member_of": ("app",)}, {"members": 1}, {"powers": ("CREATEDB",)}):
        assert "role-empty database clerk" not in judged(node(role(**{"granted": 0, **held})))


def test_powers_are_warned_of_unless_the_system_file_names_them_and_a_superuser_even_then():
    def power(name="clerk", **more):
        return judged(node(role(name, **more))).get(f"role-power database {name}")

    found = power(powers=("CREATEROLE", "REPLICATION"))
    assert found.severity == "warning"
    assert (
        found.fix == "ALTER ROLE clerk NOCREATEROLE NOREPLICATION;    -- back: ALTER ROLE clerk CREATEROLE REPLICATION;"
    )
    assert power(login=False, powers=("BYPASSRLS",)).severity == "info"
    assert power(powers=("CREATEDB",)) is None
    assert power("relight", powers=("REPLICATION",)) is None
    assert "first the grants" in power("relight", powers=("SUPERUSER", "REPLICATION")).fix
    reached = power(member_of=("pg_write_all_data", "app"), reaches=("boss", "pg_write_all_data")).fix
    assert reached.splitlines() == [
        "-- boss comes through another role it is member of",
        "REVOKE pg_write_all_data FROM clerk;",
    ]
    assert power("postgres", bootstrap=True, powers=("SUPERUSER",)).severity == "info"
    assert power("rdsadmin", powers=("SUPERUSER",)) is None, "nobody can change it"


@pytest.mark.parametrize(
    ("name", "days", "severity"),
    [
        ("relight", -1, "critical"),
        ("relight", 13, "critical"),
        ("relight", 59, "warning"),
        ("relight", 61, None),
        ("clerk", -1, "info"),
        ("clerk", 1, None),
    ],
)
def test_a_password_that_ends_is_worst_where_the_system_logs_in_with_it(name, days, severity):
    found = judged(node(role(name, valid_until=NOW + timedelta(days=days)))).get(f"role-ends database {name}")
    assert (found.severity if found else None) == severity


def test_what_a_server_cannot_tell_is_always_said():
    found = judged(node(role("relight")))
    assert found["roles-unknowable database"].severity == "unknown"
    assert "log_connections is on (pg1: off)" in found["roles-unknowable database"].evidence
    assert "relight" in found["roles-endless database"].title


class Settings(BaseModel):
    user: str = "relight"
    replication_user: str = "replicator"
    database: str = "venue"
    more: list[dict[str, str]] = [{"role": "app", "site": "west"}]


def test_the_roles_of_the_system_file_are_found_by_their_keys_also_where_they_are_defaults():
    assert set(dbroles.named_roles(Settings())) == {"relight", "replicator", "app"}


def test_what_relight_needs_of_aws_is_of_the_components_that_call_it():
    """A bucket without keys of its own is asked with the same credentials; the lab's has keys, and is no AWS."""
    (needed,) = awsusers.needs(system.load(places.system_file("event-venue")))
    assert {"aws-iam", "aws-secret", "database.rds", "storage.s3", "zones.route53"} <= set(needed.policies)
    assert {"s3:ListBucket", "rds:PromoteReadReplica"} <= needed.actions
    assert awsusers.needs(system.load(places.system_file("lab"))) == ()
