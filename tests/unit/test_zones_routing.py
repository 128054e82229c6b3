"""Record sets with weights, aliases and failover as text and back; the settings that make them; Route 53's pace."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.engine.virtualtime import VirtualLoop
from tasks.clock import LoopClock
from tasks.errors import BadInput
from tasks.zones import _routing as routing
from tasks.zones._route53_calls import Pace, _unescaped
from tasks.zones._route53_settings import ZoneSettings
from tasks.zones._routing import Alias, Member
from tasks.zones.protocol import RRset, Served

NAME = "app.venue.test."
LB = {"hosted_zone": "Z32O12XQLNTSW2", "name": "west.elb.test"}

texts = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs"]) | st.just(" "), min_size=1
)
values = st.lists(st.ip_addresses(v=4).map(str), min_size=1, max_size=4, unique=True).map(lambda v: tuple(sorted(v)))
aliases = st.builds(Alias, st.just("Z1"), st.sampled_from(["a.test.", "b.test."]), st.booleans())
roles = st.one_of(
    st.fixed_dictionaries({"weight": st.integers(0, 255)}),
    st.fixed_dictionaries({"failover": st.sampled_from(["PRIMARY", "SECONDARY"])}),
)


@st.composite
def members(draw):
    more = draw(roles) | {
        "identifier": draw(texts),
        "health": draw(st.just("") | texts),
        "other": draw(st.just("") | texts),
    }
    if draw(st.booleans()):
        return Member(alias=draw(aliases), **more)
    return Member(values=draw(values), ttl=draw(st.integers(1, 86400)), **more)


@given(st.lists(members(), min_size=1, max_size=4, unique_by=lambda m: m.text()))
def test_a_text_says_everything(found):
    ttl, written = routing.texts(tuple(found))
    assert {m.text() for m in routing.members(written, ttl)} == {m.text() for m in found}
    assert set(routing.members(written, ttl)) == set(found)


@given(members().filter(lambda m: not m.other))
def test_a_record_of_boto3_and_back(member):
    assert routing.member_of(routing.record_of(NAME, "A", member)) == member


@pytest.mark.parametrize("text", ["id=west weight=1", "what is this", "alias Z1", "id=a ttl=60", "a b=c"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="got"):
        routing.members((text,), 60)


def test_plain_values_stay_as_they_are():
    plain = RRset(NAME, "A", 60, ("192.0.2.1", "192.0.2.2"))
    assert plain.targets == plain.values
    assert routing.texts(routing.members(plain.values, 60)) == (60, plain.values)


def settings(**names):
    return ZoneSettings.model_validate(
        {"hosted_zone": "Z1", "zone": "venue.test", "servers": ["ns1.test:53"], "resolvers": ["192.0.2.53:53"],
         "names": {NAME: names}}
    )  # fmt: skip


def test_who_gets_the_traffic():
    weighted = settings(routing="weighted", A={"west": ["192.0.2.1"], "east": ["192.0.2.2"], "north": ["192.0.2.3"]})
    east = weighted.wanted(NAME, "A", "east")
    assert east.targets == ("192.0.2.2",)
    assert len(east.values) == 3
    failover = settings(
        routing="failover",
        A={s: {"values": [f"192.0.2.{n}"], "health_check": s} for n, s in enumerate(("west", "east"))},
    )
    assert failover.wanted(NAME, "A", "west").targets == ("192.0.2.0",)
    alias = settings(A={"west": {"alias": LB}})
    assert alias.wanted(NAME, "A", "west").targets == ("west.elb.test.",)
    assert alias.wanted(NAME, "A", "west").ttl == 60


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"A": {"west": []}}, "never lose its last record"),
        ({"A": {"west": {"values": ["192.0.2.1"], "alias": LB}}}, "not both"),
        ({"A": {"west": ["192.0.2.300"]}}, r"192\.0\.2\.300"),
        ({"A": {"west": {"values": ["192.0.2.1"], "identifier": "w"}}}, "need routing"),
        ({"routing": "weighted", "A": {"w": {"values": ["192.0.2.1"], "identifier": "e"}, "e": ["192.0.2.2"]}}, "same"),
        ({"routing": "failover", "A": {"west": ["192.0.2.1"], "east": ["192.0.2.2"]}}, "healthy for ever"),
        ({"routing": "failover", "A": {"west": {"alias": LB}}}, "between two sites"),
        ({"routing": "weighted", "weight": 0, "A": {"west": ["192.0.2.1"]}}, "greater than or equal to 1"),
        ({}, "at least one of"),
        ({"A": {"west": ["192.0.2.1"]}, "CNAME": {"west": ["x.test"]}}, "CNAME can have no A"),
    ],
)
def test_settings_that_could_not_work_are_refused(names, says):
    with pytest.raises(ValidationError, match=says):
        settings(**names)


def test_a_zone_needs_somebody_to_ask():
    base = {"hosted_zone": "Z1", "zone": "venue.test", "names": {NAME: {"A": {"west": ["192.0.2.1"]}}}}
    with pytest.raises(ValidationError, match="expected servers"):
        ZoneSettings.model_validate(base)
    with pytest.raises(ValidationError, match="resolvers of its VPC"):
        ZoneSettings.model_validate(base | {"private": True})
    with pytest.raises(ValidationError, match="expected resolvers"):
        ZoneSettings.model_validate(
            base | {"servers": ["ns1.test:53"], "names": {NAME: {"A": {"west": {"alias": LB}}}}}
        )
    with pytest.raises(ValidationError, match="not in zone"):
        ZoneSettings.model_validate(base | {"servers": ["ns1.test:53"], "zone": "other.test"})


def test_names_and_types_that_are_not_listed():
    one = settings(A={"west": ["192.0.2.1"]})
    for name, rdtype, site, says in (
        ("x.venue.test.", "A", "west", "not among the names"),
        (NAME, "NS", "west", "may not be changed for type"),
        (NAME, "A", "north", "no values for site"),
    ):
        with pytest.raises(BadInput, match=says):
            one.wanted(name, rdtype, site)


def test_what_is_served_is_one_of_several_or_a_part():
    assert Served((("a",), ("b",)), 60).fits(("b",))
    assert not Served((("a",), ("b",)), 60).fits(("a", "b"))
    assert Served((("a", "b"),), None, part=True).fits(("b", "c"))
    assert not Served((("a", "b"),), None, part=True).fits(("c",))
    assert not Served((), None, part=True).fits(("c",))


def test_escapes_of_listed_names():
    assert _unescaped(r"\052.Venue.test.") == "*.venue.test."
    assert _unescaped(r"a\040b.test.") == "a b.test."


def test_no_second_sees_more_than_five_requests():
    async def main():
        clock, sent = LoopClock(), []

        async def one():
            await Pace(clock, "this test", 5).turn()
            sent.append(clock.monotonic())

        await asyncio.gather(*(one() for _ in range(12)))
        await clock.sleep(0.7)
        for _ in range(7):
            await one()
        return sorted(sent)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        sent = runner.run(main())
    assert sent[4] == sent[0], "the first five at once"
    assert min(b - a for a, b in zip(sent, sent[5:], strict=False)) > 1.0
    assert sent[-1] - sent[0] < 4.5
