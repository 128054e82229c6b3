"""The checks of readiness over toys of their Protocols: each fault gives its finding, and what is well gives none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from tasks import catalog
from tasks.capacity import readiness as capacity
from tasks.capacity.protocol import Instance, Limits
from tasks.database import readiness as database
from tasks.database._durability import parse
from tasks.database.protocol import Backed, NodeView, Standing
from tasks.network import Sockets
from tasks.readiness import Asked, Part, texts
from tasks.zones import readiness as zones
from tasks.zones.protocol import Access, Answer, Owned, Pace, RRset

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


class At:
    """A clock that stands."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def utc(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None: ...


class Nothing(BaseModel):
    """No settings."""


ASKED = Asked("west", "east", At(), Sockets(), {"application": 300.0, "database": 900.0}, {"database": 0.0})


def said(check, provider, asked=ASKED, name="database"):
    found = asyncio.run(check(asked, Part(name, provider, Nothing())))
    return {(f.check, f.level) for f in found}, " | ".join(f.says for f in found)


class Group:
    """Two sites of instances."""

    def __init__(self, here: int, there: int, maximum: int = 10, sick: int = 0) -> None:
        self.counts, self.most, self.sick = {"west": here, "east": there}, maximum, sick

    def limits(self, site):
        return Limits(2, self.most)

    async def instances(self, site):
        ill = self.sick if site == "east" else 0
        total = self.counts[site] + ill
        return tuple(Instance(f"{site}-{n}", site, "", running=True, ready=n >= ill) for n in range(total))

    async def scale(self, site, count): ...


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (Group(4, 4), {("capacity", "ok")}),
        (Group(4, 2), {("capacity", "warning")}),
        (Group(4, 4, maximum=3), {("capacity", "failing")}),
        (Group(2, 2, sick=1), {("capacity", "ok"), ("target-health", "failing")}),
    ],
)
def test_the_target_must_carry_all_of_the_load(group, expected):
    assert said(capacity.load, group)[0] == expected


@dataclass
class Base:
    """A database of two nodes."""

    streaming: bool = True
    reach: str = "answers"
    behind: int = 0
    live: str = "FIRST 1 (east-pg1)"
    parameters: dict = field(default_factory=dict)
    east: dict = field(default_factory=dict)
    off_s: float = 0.0
    archive: str = ""
    kept: Backed | None = None

    def nodes(self, site=None):
        return tuple(n for n in ("west-pg1", "east-pg1") if site is None or n.startswith(site))

    def site_of(self, node):
        return node.partition("-")[0]

    def vantages(self):
        return ("direct",)

    def durability(self):
        return parse("FIRST 1 (east-pg1)")

    async def view(self, node, vantage=None):
        if node == "west-pg1":
            return NodeView(node, "west", "answers", in_recovery=False, read_only=False, timeline=1, lsn=10**9)
        if self.reach != "answers":
            return NodeView(node, "east", self.reach, why="nothing")
        lsn = 10**9 - self.behind
        return NodeView(
            node, "east", "answers", in_recovery=True, timeline=1, lsn=lsn, upstream="west-pg1",
            streaming=self.streaming, heard_age_s=0.1,
        )  # fmt: skip

    async def live_durability(self, node):
        return parse(self.live)

    async def try_write(self, node, vantage): ...
    async def fence(self, node, *, orderly): ...
    async def unfence(self, node): ...
    async def promote(self, node): ...
    async def follow(self, node, upstream): ...
    async def rejoin(self, node, upstream): ...

    async def standing(self, node):
        good = {
            "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "wal_level": "replica",
            "max_wal_senders": "10", "wal_log_hints": "on", "max_connections": "100",
        }  # fmt: skip
        own = self.east if node.startswith("east") else {}
        at = NOW + timedelta(seconds=self.off_s)
        return Standing(good | self.parameters | own, at, "15.18", self.archive)

    async def backed(self, node):
        return self.kept


def test_a_database_that_is_well():
    for check in (database.replicas, database.promises, database.settings):
        levels, _ = said(check, Base())
        assert {level for _, level in levels} == {"ok"}, check


@pytest.mark.parametrize("base", [Base(reach="refused"), Base(streaming=False), Base(behind=2 * 16 * 2**20)])
def test_a_target_without_a_replica_that_keeps_up_fails(base):
    levels, text = said(database.replicas, base)
    assert ("replicas", "failing") in levels
    assert "nothing could be promoted" in text


def test_a_primary_that_waits_for_nobody_breaks_an_rpo_of_nothing():
    assert said(database.promises, Base(live=""))[0] == {("durability", "failing")}
    assert said(database.promises, Base(live="FIRST 1 (west-pg1)"))[0] == {("durability", "failing")}
    lax = replace(ASKED, rpo_s={"database": 60.0})
    assert said(database.promises, Base(live=""), lax)[0] == {("durability", "failing")}, "the file wants a standby"


@pytest.mark.parametrize(
    ("base", "finding"),
    [
        (Base(parameters={"fsync": "off"}), ("durability", "failing")),
        (Base(parameters={"full_page_writes": "off"}), ("durability", "failing")),
        (Base(parameters={"synchronous_commit": "off"}), ("durability", "failing")),
        (Base(parameters={"synchronous_commit": "local"}), ("durability", "failing")),
        (Base(parameters={"wal_level": "minimal"}), ("wal", "failing")),
        (Base(parameters={"wal_log_hints": "off"}), ("wal", "warning")),
        (Base(archive="2026-11-26 11:00"), ("archive", "failing")),
        (Base(off_s=5.0), ("clock", "failing")),
        (Base(off_s=-5.0), ("clock", "failing")),
        (Base(east={"max_connections": "50"}), ("drift", "failing")),
        (Base(east={"shared_buffers": "16MB"}), ("drift", "warning")),
    ],
)
def test_each_setting_that_would_hurt_is_found(base, finding):
    assert finding in said(database.settings, base)[0]


def test_backups_that_nobody_tells_of_are_unknown_and_never_ok():
    assert said(database.backups, Base())[0] == {("backups", "unknown")}
    day = timedelta(days=1)
    assert said(database.backups, Base(kept=Backed(NOW, None)))[0] == {("backups", "ok"), ("restores", "unknown")}
    old = Backed(NOW - 3 * day, NOW - 200 * day)
    assert said(database.backups, Base(kept=old))[0] == {("backups", "failing"), ("restores", "failing")}
    assert said(database.backups, Base(kept=Backed(NOW, NOW - day)))[0] == {("backups", "ok"), ("restores", "ok")}


@dataclass
class Names:
    """A zone of one name."""

    ttl: int = 5
    skew_s: float = 0.0
    plane: str = ""
    serial: int = 1

    def servers(self):
        return ("a:53",)

    def resolvers(self):
        return ("r:53",)

    def names(self):
        return (("app.", "A"),)

    def wanted(self, name, rdtype, site): ...

    async def read(self, name, rdtype):
        return Owned(RRset(name, rdtype, self.ttl, ("192.0.2.1",)), 1, 1)

    async def swap(self, old, new, epoch): ...
    async def in_sync(self, name, within_s): ...
    async def served(self, rrset): ...

    def control_plane(self):
        return self.plane

    async def check_access(self, name, rdtype):
        return Access("p:53", "p.", 1, self.skew_s)

    async def ask(self, server, name, rdtype):
        return Answer(server, "NOERROR", None, serial=self.serial)


@pytest.mark.parametrize(("ttl", "level"), [(5, "ok"), (200, "warning"), (300, "failing"), (3600, "failing")])
def test_a_ttl_is_held_against_the_rto(ttl, level):
    assert said(zones.ttl, Names(ttl=ttl))[0] == {("ttl", level)}


def test_a_ttl_without_an_rto_is_unknown():
    assert said(zones.ttl, Names(), replace(ASKED, rto_s={}))[0] == {("ttl", "unknown")}


class Slow:
    """A keeper of a zone that takes five requests a second."""

    def __init__(self, requests):
        self.requests = requests

    def pace(self):
        return Pace(self.requests, 5.0)


@pytest.mark.parametrize(("requests", "level"), [(16, "ok"), (800, "warning"), (1500, "failing")])
def test_a_move_of_every_name_is_held_against_the_pace_of_the_account(requests, level):
    assert said(zones.pace, Slow(requests))[0] == {("quota", level)}
    assert said(zones.pace, Slow(requests), replace(ASKED, rto_s={}))[0] == {("quota", "unknown")}


def test_clocks_servers_and_control_planes_of_a_zone():
    assert ("clock", "ok") in said(zones.access, Names())[0]
    assert ("clock", "failing") in said(zones.access, Names(skew_s=200))[0]
    assert ("clock", "failing") in said(zones.access, Names(skew_s=-200))[0]
    assert ("servers", "failing") in said(zones.access, Names(serial=7))[0]
    assert said(zones.control_plane, Names(plane="Route 53's, us-east-1"))[0] == {("control-plane", "warning")}
    assert said(zones.control_plane, Names())[0] == set()


def test_checks_are_found_without_a_list_and_say_nothing_of_what_they_do_not_know():
    checks = catalog.checks()
    assert {capacity.load, database.replicas, zones.ttl} <= set(checks)
    for check in checks:
        assert asyncio.run(check(ASKED, Part("x", object(), Nothing()))) == [], check


def test_texts_of_settings_keep_references_and_name_their_way(monkeypatch):
    class Inner(BaseModel):
        url: str

    class Outer(BaseModel):
        sites: dict[str, Inner]
        key: str = "file:$HOME/key"
        other: tuple[str, ...] = ("$NOT_SET_ANYWHERE",)

    monkeypatch.setenv("PLACE", "there")
    found = dict(texts(Outer(sites={"west": Inner(url="http://$PLACE")})))
    assert found[("sites", "west", "url")] == "http://there"
    assert found[("key",)] == "file:$HOME/key"
    assert found[("other",)] == "$NOT_SET_ANYWHERE"
